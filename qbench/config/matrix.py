"""`matrix:` in a configuration: sweeps, expanded before anything is checked.

    matrix:
      model: [{demo: true}, {path: ../models/x}]
      dtype: [float16, bfloat16]
      backends.int4.group_size: [32, 64, 128]

A path below `backends.<label>` multiplies that cell inside its run: int4-32, int4-64 and int4-128. Every other path
multiplies runs, each with a folder of its own under results/: NAME-demo-float16, NAME-demo-bfloat16, NAME-x-float16, …
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.config import RunConfig
from qbench.config import load as configfile
from qbench.errors import QbenchError

MAX_RUNS = 100
MAX_CELLS = 500
"""Of all runs together: more is a slip of the pen rather than a plan."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One line of a matrix."""

    path: str
    values: tuple[Any, ...]
    names: tuple[str, ...]
    """What each value adds to the name of its run or the label of its cell."""

    @property
    def cell(self) -> str | None:
        """The cell that it multiplies, by label, kind or index; None if it multiplies runs."""
        section, _, rest = self.path.partition(".")
        return rest.partition(".")[0] if section == "backends" else None

    @property
    def option(self) -> str:
        """The path inside the cell."""
        return self.path.split(".", 2)[2]

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"matrix.{self.path}"

    @property
    def points(self) -> list[tuple[Axis, Any, str]]:
        """Every value with its name."""
        return [(self, value, name) for value, name in zip(self.values, self.names, strict=True)]


def load(path: Path, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Read and check a configuration: its runs, in order; one where it has no matrix.

    Raises:
        QbenchError: see `qbench.config.load.load` and `expand`; or an override of what the matrix varies.
    """
    data = configfile.read(path, overrides)
    if "matrix" not in data:
        return [configfile.check(data, str(path))]
    runs = expand(data)
    for key in (override.partition("=")[0] for override in overrides):
        for varied in data["matrix"]:
            if f"{key}.".startswith(f"{varied}."):
                raise QbenchError(
                    f"--set {key}: the matrix varies {varied}; use --set 'matrix.{varied}=[…]', or --set matrix=null"
                )
    return [configfile.check(run, f"{path}, run {run.get('name')}") for run in runs]


def expand(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of each run that values with a `matrix` describe; the last axis varies fastest.

    Raises:
        QbenchError: an axis that is none, names that are there twice, or more runs or cells than anyone means.
    """
    base = {key: value for key, value in data.items() if key != "matrix"}
    axes = _axes(data["matrix"])
    by_run = [axis for axis in axes if axis.cell is None]
    cells = _multiply_cells(base.get("backends"), [axis for axis in axes if axis.cell is not None])
    runs = math.prod(len(axis.values) for axis in by_run)
    if runs > MAX_RUNS or runs * len(cells) > MAX_CELLS:
        raise QbenchError(
            f"matrix: makes {runs:,} runs of {len(cells):,} cells; at most {MAX_RUNS} runs and {MAX_CELLS} cells in all"
        )
    return [_run(base | {"backends": cells}, point) for point in itertools.product(*(axis.points for axis in by_run))]


def _run(base: dict[str, Any], point: Sequence[tuple[Axis, Any, str]]) -> dict[str, Any]:
    run = copy.deepcopy(base)
    for axis, value, _ in point:
        configfile.assign(run, axis.path, copy.deepcopy(value), axis.origin)
    if isinstance(run.get("name"), str):
        run["name"] = "-".join([run["name"], *(name for _, _, name in point)])
    return run


def _multiply_cells(backends: Any, axes: Sequence[Axis]) -> list[Any]:
    """Every cell, or in its place those that its axes make of it."""
    if not isinstance(backends, list) or not all(isinstance(cell, dict) for cell in backends):
        raise QbenchError("matrix: `backends:` is not a list of cells, e.g. `- kind: int4`")
    chosen: dict[int, list[Axis]] = {}
    for axis in axes:
        chosen.setdefault(configfile.index(backends, str(axis.cell), axis.origin), []).append(axis)
    cells: list[Any] = []
    for number, cell in enumerate(backends):
        if math.prod(len(axis.values) for axis in chosen.get(number, [])) > MAX_CELLS:
            raise QbenchError(f"matrix: makes more than {MAX_CELLS} cells of {cell.get('label') or cell.get('kind')}")
        points = itertools.product(*(axis.points for axis in chosen.get(number, [])))
        cells += [_cell(cell, point) for point in points]
    return cells


def _cell(base: dict[str, Any], point: Sequence[tuple[Axis, Any, str]]) -> dict[str, Any]:
    cell = copy.deepcopy(base)
    for axis, value, _ in point:
        configfile.assign(cell, axis.option, copy.deepcopy(value), axis.origin)
    if point:
        cell["label"] = "-".join([str(cell.get("label") or cell.get("kind")), *(name for _, _, name in point)])
    return cell


def _axes(matrix: Any) -> list[Axis]:
    if not isinstance(matrix, dict) or not matrix:
        raise QbenchError("matrix: expected dotted paths with lists of values, e.g. `dtype: [float16, bfloat16]`")
    axes = [_axis(str(path), values) for path, values in matrix.items()]
    for one, other in itertools.permutations(axes, 2):
        if one.path.startswith(f"{other.path}."):
            raise QbenchError(f"matrix: {one.path} is a part of {other.path}; vary one of them")
    return axes


def _axis(path: str, values: Any) -> Axis:
    if not isinstance(values, list) or not values:
        raise QbenchError(f"matrix.{path}: expected a list of values, e.g. [32, 64]")
    parts = path.split(".")
    if path in ("name", "matrix") or (parts[0] == "backends" and parts[2:] in ([], ["label"])):
        raise QbenchError(
            f"matrix.{path}: cannot be varied; names and labels are made of the values, and cells stand in `backends:`"
        )
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise QbenchError(f"matrix.{path}: {twice[0]} is listed twice")
    names = [_name(value) for value in values]
    lower = [name.lower() for name in names]
    for name, value in zip(names, values, strict=True):
        if not name:
            raise QbenchError(f"matrix.{path}: {value!r} gives no name for a folder; use letters or digits")
        if lower.count(name.lower()) > 1:
            same = [str(v) for v, other in zip(values, lower, strict=True) if other == name.lower()]
            raise QbenchError(f"matrix.{path}: {' and '.join(same)} would both be named {name}; rename one of them")
    return Axis(path, tuple(values), tuple(names))


def _name(value: Any) -> str:
    """What a name calls a value: a number as it is, a path or hub id by its last part, a mapping by its values."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "none"}[value]
        case int() | float():
            return str(value)
        case dict():
            # `demo: true` is called demo, and `demo: false` nothing.
            given = {key: part for key, part in value.items() if part is not None and part is not False}
            return "-".join(str(key) if part is True else _name(part) for key, part in given.items())
        case list():
            return "-".join(_name(part) for part in value)
        case _:
            last = str(value).rstrip("/").rpartition("/")[2]
            return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")
