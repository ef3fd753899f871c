"""The kinds of backends: those that qbench ships, and those that other distributions register.

A distribution registers a kind as an entry point of the group `qbench.backends`, whose name is the kind and whose value
a module with `CONFIG`, a subclass of `Backend`, and `load` (see `qbench.backends.base.BackendModule`). Entry points are
read where a kind is not one of ours, and such a module is imported where a configuration names its kind: a command on a
configuration without plug-ins pays for none of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, SerializeAsAny, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from qbench.config.backends import AWQ, FP16, GPTQ, NF4, Backend, Int4
from qbench.errors import QbenchError

GROUP = "qbench.backends"
"""Name of the entry points, and of the package of the kinds that are shipped."""

Shipped = Annotated[FP16 | Int4 | NF4 | AWQ | GPTQ, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A kind that another distribution registers."""

    kind: str
    module: str
    distribution: str
    version: str

    @property
    def remedy(self) -> str:
        """What to do where it cannot be used."""
        return f"mend or reinstall {self.distribution}, which registers it"

    def load_config(self) -> type[Backend]:
        """Its `CONFIG`.

        Raises:
            QbenchError: it cannot be imported, or is no backend's configuration.
        """
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            raise self._unusable(f"{self.module} cannot be imported: {type(error).__name__}: {error}") from error
        config = getattr(module, "CONFIG", None)
        if not (isinstance(config, type) and issubclass(config, Backend)):
            raise self._unusable(f"{self.module} has no CONFIG that is a subclass of qbench.config.Backend")
        kind = config.model_fields["kind"]
        if get_args(kind.annotation) != (self.kind,) or kind.default != self.kind:
            raise self._unusable(f"{self.module}.CONFIG needs `kind: Literal[{self.kind!r}] = {self.kind!r}`")
        if not callable(getattr(module, "load", None)):
            raise self._unusable(f"{self.module} has no function `load`")
        return config

    def _unusable(self, reason: str) -> QbenchError:
        return QbenchError(f"backend {self.kind} ({self.distribution} {self.version}): {reason}; {self.remedy}")


@functools.cache
def plugins() -> dict[str, Plugin]:
    """The registered kinds by name, sorted; nothing of theirs is imported.

    Raises:
        QbenchError: two distributions register the same kind, or one that qbench ships.
    """
    found: dict[str, Plugin] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        name, version = (point.dist.name, point.dist.version) if point.dist else (point.value, "")
        plugin = Plugin(point.name, point.module, name, version)
        other = found.get(point.name)
        if point.name in backend_kinds():
            raise QbenchError(f"backend {point.name}: {name} registers a kind that qbench ships; uninstall it")
        if other and other != plugin:
            raise QbenchError(
                f"backend {point.name}: both {other.distribution} and {name} register it; uninstall one of them"
            )
        found[point.name] = plugin
    return found


@functools.cache
def backend_kinds() -> dict[str, type[Backend]]:
    """The kinds that qbench ships, in the order of their declaration."""
    union, _discriminator = get_args(Shipped)
    return {cls.model_fields["kind"].default: cls for cls in get_args(union)}


def kind_names() -> list[str]:
    """All that a configuration may name: the shipped kinds, then the registered ones."""
    return [*backend_kinds(), *plugins()]


def backend_class(kind: str) -> type[Backend] | None:
    """The options of a kind; None if there is no such kind.

    Raises:
        QbenchError: it is registered, and cannot be used.
    """
    if kind in backend_kinds():
        return backend_kinds()[kind]
    plugin = plugins().get(kind)
    return plugin.load_config() if plugin else None


def module_name(kind: str) -> str:
    """The module that loads models of a kind."""
    if kind == "int4":
        return f"{GROUP}.int4.load"
    return f"{GROUP}.{kind}" if kind in backend_kinds() else plugins()[kind].module


def plugin_facts(kind: str) -> dict[str, str]:
    """What decides the figures of a registered kind besides its settings: the source of its module.

    Empty for the kinds that qbench ships.
    """
    if kind in backend_kinds():
        return {}
    spec = find_spec(module_name(kind))
    source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    return {"plugin.code": hashlib.sha256(source).hexdigest()[:16]}


@functools.cache
def _adapter(cls: type[Backend]) -> TypeAdapter[Any]:
    """Checks one registered kind; as a branch of a union, so that errors stand where those of shipped kinds do."""
    branches: Any = Annotated[FP16 | cls, Field(discriminator="kind")]
    return TypeAdapter(branches)


def _check(value: Any, shipped: ValidatorFunctionWrapHandler) -> Backend:
    """A cell of any kind."""
    if isinstance(value, Backend) and value.kind not in backend_kinds():
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    plugin = plugins().get(kind) if isinstance(kind, str) and kind not in backend_kinds() else None
    cell: Backend = _adapter(plugin.load_config()).validate_python(value) if plugin else shipped(value)
    return cell


BackendConfig = Annotated[SerializeAsAny[Shipped], WrapValidator(_check)]
"""A cell of a run. In a run's JSON a registered kind is written as itself, not as one of the union."""
