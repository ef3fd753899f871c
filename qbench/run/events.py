"""How a worker speaks to its runner: lines of JSON appended to one file, each complete once its newline is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from qbench.records.files import end_last_line
from qbench.records.redact import Redactor
from qbench.records.rows import ROW_TYPES, Row


class StoredRow(BaseModel):
    """A row with the name of its type."""

    table: str
    row: dict[str, object]

    @field_validator("table")
    @classmethod
    def _known(cls, table: str) -> str:
        if table not in ROW_TYPES:
            raise ValueError(f"no such row type: {table}")
        return table

    @classmethod
    def of(cls, row: Row) -> StoredRow:
        """`row`, to be kept."""
        return cls(table=type(row).__name__, row=row.model_dump(mode="json"))

    def parsed(self) -> Row:
        """The row as its type.

        Raises:
            ValueError: it does not fit its type.
        """
        return ROW_TYPES[self.table].model_validate(self.row)


class UnitEvent(BaseModel):
    """A unit of work (`qbench.run.fingerprint`) and all of its rows: one line, so that all are kept or none."""

    event: Literal["unit"] = "unit"
    name: str
    key: str
    rows: tuple[StoredRow, ...]
    complete: bool = True
    """Whether nothing of it is left to do. Rows of a measure that failed half way are kept and measured again."""
    kernel: str | None = None
    """What multiplied; None where that was not known."""

    def parsed(self) -> list[Row]:
        """Its rows as their types."""
        return [row.parsed() for row in self.rows]

    @property
    def done(self) -> bool:
        """Whether a rerun has nothing to do: complete, and no row says that something failed."""
        return self.complete and all(row.row.get("status", "ok") == "ok" for row in self.rows)


class ProgressEvent(BaseModel):
    """How far the cell is."""

    event: Literal["progress"] = "progress"
    what: str
    done: int
    total: int


Event = Annotated[UnitEvent | ProgressEvent, Field(discriminator="event")]

_EVENT: TypeAdapter[UnitEvent | ProgressEvent] = TypeAdapter(Event)


class EventLog:
    """The writing end. Units reach the disk before `unit` returns; progress only the operating system."""

    kernel: str | None = None
    """What multiplies in the units that are written from now on."""

    def __init__(self, path: Path) -> None:
        end_last_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._redactor = Redactor.here()

    def unit(self, name: str, key: str, rows: Iterable[Row], *, complete: bool = True) -> None:
        """Keep a unit's rows, durably."""
        stored = tuple(StoredRow.of(row) for row in rows)
        self._write(UnitEvent(name=name, key=key, rows=stored, complete=complete, kernel=self.kernel))
        os.fsync(self._file.fileno())

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far the current measure is."""
        self._write(ProgressEvent(what=what, done=done, total=total))

    def _write(self, event: UnitEvent | ProgressEvent) -> None:
        self._file.write(json.dumps(self._redactor.value(event.model_dump())) + "\n")
        self._file.flush()


class EventReader:
    """The reading end: each call of `new` gives the events that have been completed since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[UnitEvent | ProgressEvent]:
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


def read_units(path: Path) -> dict[str, UnitEvent]:
    """The last state of every unit in an event file, by name; of a missing file, none."""
    units: dict[str, UnitEvent] = {}
    for event in EventReader(path).new():
        if isinstance(event, UnitEvent):
            try:
                event.parsed()
            except ValidationError:  # a row of another version's columns
                continue
            units[event.name] = event
    return units


def last_kernel(path: Path) -> str | None:
    """The kernel of the last unit that names one in an event file; None if no unit does."""
    kernels = [event.kernel for event in EventReader(path).new() if isinstance(event, UnitEvent) and event.kernel]
    return kernels[-1] if kernels else None
