"""The tables of a run as data frames, in which tests pick rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from qbench.records.rows import TABLES, Row
from qbench.records.run import Run, read_run


def to_frame(row_type: type[Row], rows: Sequence[Row]) -> pd.DataFrame:
    """With the columns of the type, in order, also when there is no row; missing values are NA."""
    frame = pd.DataFrame([row.model_dump() for row in rows], columns=list(row_type.model_fields))
    return frame.convert_dtypes()


@dataclass(frozen=True)
class Frames:
    """A run; its tables are data frames."""

    run: Run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.run, name)
        return to_frame(TABLES[name], found) if name in TABLES else found


def read_frames(folder: Path) -> Frames:
    return Frames(read_run(folder))


def edited(run: Run, table: str, **columns: object) -> Run:
    """The run with other values in some columns of a table: one for all rows, or a list of one each."""
    rows = getattr(run, table)
    values = {name: found if isinstance(found, list) else [found] * len(rows) for name, found in columns.items()}
    updates = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    new = tuple(row.model_copy(update=update) for row, update in zip(rows, updates, strict=True))
    return replace(run, **{table: new})
