"""A table before it is written: what stands in its fields, and how they are sorted and coloured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column; one of figures is aligned to the right."""

    title: str
    numeric: bool = True
    backend: str | None = None
    """The backend that all of the column is of, if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What stands in a row under a column."""

    text: str
    value: float | None = None
    """By which rows are sorted; texts without one are sorted as texts."""
    alarm: bool = False
    strong: bool = False
    tint: float | None = None
    """From -1, worse, to 1, better: how strongly the field is coloured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """A row, of a run and mostly of a backend; the first field is its heading."""

    run: int
    """Number of the run in the report."""
    backend: str | None
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a caption that says what it shows."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
