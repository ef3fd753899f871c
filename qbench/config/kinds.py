"""The kinds of backends: those that qbench ships, and those that other distributions register.

A kind is a module with `CONFIG`, a subclass of `Backend`, and `load` (see `qbench.backends.base.BackendModule`). Those
of `SHIPPED` are modules of `qbench.backends`; a distribution registers another as an entry point of the group
`qbench.backends`, whose name is the kind and whose value the module. Entry points are read where a kind is not one of
ours, and such a module is imported where a configuration names its kind: a command on a configuration without plug-ins
pays for none of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Union, get_args

from pydantic import Field, PlainValidator, SerializeAsAny, TypeAdapter

from qbench import DISTRIBUTION, __version__
from qbench.config.backends import Backend
from qbench.errors import QbenchError

GROUP = "qbench.backends"
"""Name of the entry points, and of the package of the kinds that are shipped."""

SHIPPED = (
    *("fp16", "int4", "nf4", "awq", "gptq"),
    *("int8", "torchao", "hqq", "quanto", "compressed-tensors", "auto-round", "gguf", "mlx", "server"),
)
"""Modules of `qbench.backends`, hyphens for underscores, as they are listed everywhere."""

CODE_SUFFIXES = (".py", ".so", ".pyd", ".dylib", ".c", ".cpp", ".cu", ".cuh", ".h")
"""Of a plug-in's files that decide its figures."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The module of a kind, and the distribution that registers it."""

    kind: str
    module: str
    distribution: str
    version: str

    @property
    def remedy(self) -> str:
        """What to do where its options cannot be imported."""
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
def plugins() -> dict[str, Registered]:
    """The registered kinds by name, sorted; nothing of theirs is imported.

    Raises:
        QbenchError: two distributions register the same kind, or one that qbench ships.
    """
    found: dict[str, Registered] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        name, version = (point.dist.name, point.dist.version) if point.dist else (point.value, "")
        plugin = Registered(point.name, point.module, name, version)
        other = found.get(point.name)
        if point.name in SHIPPED:
            raise QbenchError(f"backend {point.name}: {name} registers a kind that qbench ships; uninstall it")
        if other and other != plugin:
            raise QbenchError(
                f"backend {point.name}: both {other.distribution} and {name} register it; uninstall one of them"
            )
        found[point.name] = plugin
    return found


@functools.cache
def backend_kinds() -> dict[str, type[Backend]]:
    """The kinds that qbench ships, in the order of `SHIPPED`."""
    return {kind: _shipped(kind).load_config() for kind in SHIPPED}


def kind_names() -> list[str]:
    """All that a configuration may name: the shipped kinds, then the registered ones."""
    return [*SHIPPED, *plugins()]


def registered(kind: str) -> Registered | None:
    """A kind of either sort; None if there is no such kind. Others' entry points are read only for kinds of theirs."""
    return _shipped(kind) if kind in SHIPPED else plugins().get(kind)


def backend_class(kind: str) -> type[Backend] | None:
    """The options of a kind; None if there is no such kind.

    Raises:
        QbenchError: it is registered, and cannot be used.
    """
    found = registered(kind)
    return found.load_config() if found else None


def _shipped(kind: str) -> Registered:
    return Registered(kind, f"{GROUP}.{kind.replace('-', '_')}", DISTRIBUTION, __version__)


def plugin_facts(kind: str) -> dict[str, str]:
    """What decides the figures of a kind of another distribution besides its settings: its version and its code.

    The code is that of the package that its module lies in, and of all else that its distribution installed; compiled
    files included.
    """
    if kind in SHIPPED:
        return {}
    found = plugins()[kind]
    digest = hashlib.sha256()
    for name, path in sorted(_code(found).items()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {"plugin.code": f"sha256:{digest.hexdigest()}", "plugin.version": found.version}


def _code(plugin: Registered) -> dict[str, Path]:
    """The files of a plug-in by names that do not tell where it is installed."""
    files: dict[str, Path] = {}
    try:
        installed = metadata.files(plugin.distribution) or ()
    except metadata.PackageNotFoundError:
        installed = ()
    for file in installed:
        files[file.as_posix()] = Path(str(file.locate()))
    top = plugin.module.partition(".")[0]
    spec = find_spec(top)
    if spec and spec.submodule_search_locations:
        for folder in map(Path, spec.submodule_search_locations):
            files |= {f"{top}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*")}
    elif spec and spec.origin:
        files[Path(spec.origin).name] = Path(spec.origin)
    return {name: path for name, path in files.items() if path.suffix in CODE_SUFFIXES and path.is_file()}


@functools.cache
def _adapter(*others: type[Backend]) -> TypeAdapter[Any]:
    """Checks the shipped kinds and `others`: a union by kind, so that an error names it, and stands below it."""
    union: Any = Union[*backend_kinds().values(), *others]
    return TypeAdapter(Annotated[union, Field(discriminator="kind")])


def _check(value: Any) -> Backend:
    """A cell of any kind."""
    if isinstance(value, Backend):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    plugin = plugins().get(kind) if isinstance(kind, str) and kind not in SHIPPED else None
    cell: Backend = _adapter(*([plugin.load_config()] if plugin else [])).validate_python(value)
    return cell


BackendConfig = Annotated[Backend, PlainValidator(_check, json_schema_input_type=Any), SerializeAsAny()]
"""A cell of a run, by its kind. In a run's JSON it is written with all of its options."""
