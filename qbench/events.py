"""How a worker speaks to its runner: lines of JSON appended to one file, each complete once its newline is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from qbench.rows import ROW_TYPES, Row


class RowEvent(BaseModel):
    """A row, kept."""

    event: Literal["row"] = "row"
    table: str
    """Name of the row's type."""
    row: dict[str, object]

    @field_validator("table")
    @classmethod
    def _known(cls, table: str) -> str:
        if table not in ROW_TYPES:
            raise ValueError(f"no such row type: {table}")
        return table

    def parsed(self) -> Row:
        """The row as its type.

        Raises:
            ValueError: it does not fit its type.
        """
        return ROW_TYPES[self.table].model_validate(self.row)


class ProgressEvent(BaseModel):
    """How far the cell is."""

    event: Literal["progress"] = "progress"
    what: str
    done: int
    total: int


Event = Annotated[RowEvent | ProgressEvent, Field(discriminator="event")]

_EVENT: TypeAdapter[RowEvent | ProgressEvent] = TypeAdapter(Event)


class EventLog:
    """The writing end. Rows reach the disk before `row` returns; progress only the operating system."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def row(self, row: Row) -> None:
        """Keep a row, durably."""
        self._write(json.dumps({"event": "row", "table": type(row).__name__, "row": row.model_dump(mode="json")}))
        os.fsync(self._file.fileno())

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far the current measure is."""
        self._write(ProgressEvent(what=what, done=done, total=total).model_dump_json())

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


class EventReader:
    """The reading end: each call of `new` gives the events that have been completed since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[RowEvent | ProgressEvent]:
        """Complete, valid lines; one without its newline waits for the next call, a damaged one is passed over."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                try:
                    yield _EVENT.validate_json(line)
                except ValidationError:
                    continue


def read_rows(path: Path) -> list[Row]:
    """All rows of an event file; of a missing file, none."""
    rows: list[Row] = []
    for event in EventReader(path).new():
        if isinstance(event, RowEvent):
            rows.append(event.parsed())
    return rows
