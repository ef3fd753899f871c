"""Every package that is imported is declared, so that no other package has to bring it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from qbench import DISTRIBUTION

ROOT = Path(__file__).parents[1]

BROUGHT = {"triton", "awq"}
"""Part of torch where it serves; and of the interpreter in which AutoAWQ quantizes."""


def imported() -> dict[str, str]:
    """The top-level packages that qbench imports, with a file that does."""
    found = {}
    for path in (ROOT / "qbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            found |= {name.partition(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"qbench"}}


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Distributions that an installation with or without extras names, but for those of developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wishes = [*project["dependencies"], *(wish for name in extras.keys() - {"dev", "docs"} for wish in extras[name])]
    return {canonical(re.split(r"[\[<>=;~! ]", wish)[0]) for wish in wishes}


def test_every_imported_package_is_declared() -> None:
    distributions = packages_distributions()
    missing = {
        name: path
        for name, path in imported().items()
        if name not in BROUGHT and not {canonical(d) for d in distributions.get(name, [name])} & declared()
    }
    assert missing == {}


def test_pip_is_asked_for_this_distribution() -> None:
    """`qbench` on the package index is another project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "qbench").rglob("*.py")]
    other = re.compile(r"pip install[^`\n]* '?qbench(?![\w-])")
    assert [page for page in pages if other.search(page.read_text(encoding="utf-8"))] == []
