"""What the tables of a report have in common: whose a row is, and fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qbench.analysis.figures import CellSummary, Speed
from qbench.show import formats
from qbench.show.report.table import Column, Field, Table, TableRow
from qbench.show.view.records import RunReport
from qbench.text import MISSING


def by_cell(
    key: str,
    caption: str,
    reports: Sequence[RunReport],
    columns: Sequence[Column],
    row: Callable[[RunReport, CellSummary], list[Field]],
) -> Table:
    """A table with a row for each cell of every run, which begins with whose it is."""
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*identity(reports, report, cell), *row(report, cell)))
        for i, report in enumerate(reports)
        for cell in report.cells
    ]
    return Table(key=key, caption=caption, columns=tuple(columns), rows=tuple(rows))


def whose(reports: Sequence[RunReport]) -> list[Column]:
    """The first columns: the backend and, of several runs, the run."""
    columns = [Column(title="backend", numeric=False)]
    return columns if len(reports) == 1 else [*columns, Column(title="run", numeric=False)]


def identity(reports: Sequence[RunReport], report: RunReport, cell: CellSummary) -> list[Field]:
    """The first fields, see `whose`."""
    failed = cell.status != "ok"
    name = Field(text=f"{cell.name} ({cell.status})" if failed else cell.name, alarm=failed)
    return [name] if len(reports) == 1 else [name, Field(text=report.title)]


def text_field(text: str | None) -> Field:
    """A text, or the sign for none."""
    return Field(text=text or MISSING)


def figure_field(value: float | None, text: str) -> Field:
    """A number as it is shown, and as it is sorted by."""
    return Field(text=text, value=value)


def speed_field(speed: Speed) -> Field:
    """Tokens/s with a mark if they are not to be trusted, or why there are none."""
    if speed.tokens_per_s is None and speed.status in (None, "ok"):
        return figure_field(None, MISSING)
    if speed.tokens_per_s is None:
        return Field(text=str(speed.status), alarm=True)
    mark = " !" if speed.doubtful else ""
    return Field(text=formats.tokens(speed.tokens_per_s) + mark, value=speed.tokens_per_s, alarm=bool(mark))


def trust_field(speed: Speed) -> Field:
    """What speaks against a speed."""
    failed = "" if speed.status == "ok" else f"some trial: {speed.status}"
    found = ", ".join(filter(None, (failed, formats.doubts(speed.reasons))))
    return Field(text=found or speed.validity or "not recorded", alarm=bool(found))
