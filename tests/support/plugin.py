"""Distributions that register backends, as pip would leave them in site-packages."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qbench.config.kinds import plugins

EXAMPLES = Path(__file__).parents[2] / "examples"


def install(folder: Path, name: str, kinds: dict[str, str], modules: dict[str, str], version: str = "1.0") -> Path:
    """Put a distribution with these entry points and modules, by name, into `folder`."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "".join(f"{kind} = {module}\n" for kind, module in kinds.items())
    (info / "entry_points.txt").write_text(f"[qbench.backends]\n{points}")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


def install_example(folder: Path, name: str = "int8_rows") -> Path:
    """Put an example of the documentation into `folder`."""
    example = EXAMPLES / name
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    kinds = project["entry-points"]["qbench.backends"]
    modules = {module: (example / f"{module}.py").read_text() for module in kinds.values()}
    return install(folder, project["name"], kinds, modules, project["version"])


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Where this process searches a folder for distributions, too; what it imported from there is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        plugins.cache_clear()
        try:
            yield
        finally:
            plugins.cache_clear()
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
                    del sys.modules[name]
