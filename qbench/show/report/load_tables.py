"""Tables of a report about servers under load."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.analysis import validity
from qbench.records.rows import LoadRow
from qbench.show import formats
from qbench.show.phrases import found_rate_words, level_words
from qbench.show.report.fields import figure_field, identity, text_field, whose
from qbench.show.report.table import Column, Field, Table, TableRow
from qbench.show.view.records import RunReport
from qbench.text import MISSING


def levels(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell and level; None where no server was under load."""
    titles = (
        *("requests/s", "output tokens/s", "first token, p50", "p95", "p99", "between tokens, p50", "p95", "p99"),
        *("whole answer, p50", "p95", "p99", "within the objective", "goodput, requests/s"),
    )
    columns = [
        *whose(reports),
        Column(title="load", numeric=False),
        *(Column(title=title) for title in titles),
        Column(title="errors", numeric=False),
        Column(title="trust", numeric=False),
    ]
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*identity(reports, report, cell), *_fields(level)))
        for i, report in enumerate(reports)
        for cell in report.cells
        for level in (cell.load.levels if cell.load else ())
    ]
    caption = "Under load: requests of each level that count; percentiles over those that were answered"
    return Table(key="load", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def found(reports: Sequence[RunReport]) -> list[list[str]]:
    """For each run, the highest rates that were found to keep the objective, a line a cell."""
    return [
        [f"{cell.name}: {found_rate_words(cell.load.found)}" for cell in report.cells if cell.load and cell.load.found]
        for report in reports
    ]


def _fields(level: LoadRow) -> list[Field]:
    latencies = (
        *(level.ttft_p50_s, level.ttft_p95_s, level.ttft_p99_s),
        *(level.itl_p50_s, level.itl_p95_s, level.itl_p99_s),
        *(level.e2e_p50_s, level.e2e_p95_s, level.e2e_p99_s),
    )
    failed = level.error if level.status != "ok" else level.errors
    flags = validity.reasons(level.validity)
    return [
        Field(text=level_words(level)),
        figure_field(level.requests_per_s, formats.tokens(level.requests_per_s)),
        figure_field(level.output_tokens_per_s, formats.tokens(level.output_tokens_per_s)),
        *(figure_field(value, formats.milliseconds(value)) for value in latencies),
        figure_field(level.attainment, _attainment(level)),
        figure_field(level.goodput_per_s, formats.tokens(level.goodput_per_s)),
        Field(text=failed, alarm=True) if failed else text_field(None),
        Field(text=formats.doubts(flags) or level.validity or "not recorded", alarm=bool(flags)),
    ]


def _attainment(level: LoadRow) -> str:
    """`95 of 100, [88.7, 98.4] %`."""
    if level.attainment is None or level.attainment_low is None or level.attainment_high is None:
        return MISSING
    return (
        f"{level.met:,} of {level.requests:,} [{100 * level.attainment_low:.1f}, {100 * level.attainment_high:.1f}] %"
    )
