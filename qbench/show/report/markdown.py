"""BENCHMARK.md: the tables of a report, for a repository."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.show.markdown import inline
from qbench.show.report import load_tables, speed_tables, tables
from qbench.show.report.table import Table
from qbench.show.view.records import RunReport

MARK = "<!-- qbench report -->"
"""The first line, by which a file is known to be ours."""


def render(reports: Sequence[RunReport]) -> str:
    """The text of the file."""
    parts = [MARK, "# Benchmark", "\n".join(_origin(report) for report in reports), "## Results"]
    parts += [_table(tables.summary(reports)), "In brackets: 95 % intervals. A `!` marks a figure not to be trusted."]
    if verdicts := tables.verdicts(reports):
        parts.append(_table(verdicts))
    notes = [f"- {inline(report.title)}: {inline(line)}" for report in reports for line in report.reading]
    parts += ["\n".join(notes)] if notes else []
    for title, field in (("Failed", "failures"), ("Marked, or damaged", "doubts"), ("Not reported", "notes")):
        lines = [f"- {inline(report.title)}: {inline(line)}" for report in reports for line in getattr(report, field)]
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    for heading, table, lines in (
        ("Tasks", tables.tasks(reports), []),
        ("Speed and latency", speed_tables.speeds(reports), _crossovers(reports)),
        ("Speed at a filled cache", speed_tables.depths(reports), []),
        ("Where a decode step's time goes", speed_tables.steps(reports), _bandwidths(reports)),
        ("Sustained load", speed_tables.sustained(reports), []),
        ("Under load", load_tables.levels(reports), _rates(reports)),
        ("Predicted and measured", tables.predictions(reports), []),
        ("Loading", tables.loading(reports), []),
    ):
        if table:
            parts += [f"## {heading}", _table(table), *(["\n".join(lines)] if lines else [])]
    found = [table for i, report in enumerate(reports) if (table := tables.subjects(report, i))]
    if found:
        parts += ["## By subject", *(_table(table) for table in found)]
        parts.append("`*`: more than chance (McNemar's test, corrected by Holm over all subjects and backends).")
    parts.append("## Reproduce")
    for report in reports:
        parts += [f"{inline(report.title)}:", "\n".join(f"    {line}" for line in _lines(report.commands))]
    parts.append(_table(tables.environments(reports)))
    return "\n\n".join(parts) + "\n"


def _origin(report: RunReport) -> str:
    words = f"{report.model}, {report.dtype}, on {report.machine}; {report.day} UTC"
    settings = [f"    - {name}: {inline(text)}" for name, text in report.settings.items()]
    return "\n".join([f"- **{inline(report.title)}**: {inline(words)}", *settings])


def _crossovers(reports: Sequence[RunReport]) -> list[str]:
    return [f"- {inline(report.title)}: {inline(line)}" for report in reports for line in report.crossovers]


def _rates(reports: Sequence[RunReport]) -> list[str]:
    found = zip(reports, load_tables.found(reports), strict=True)
    return [f"- {inline(report.title)}: {inline(line)}" for report, lines in found for line in lines]


def _bandwidths(reports: Sequence[RunReport]) -> list[str]:
    words = zip(reports, speed_tables.step_bandwidths(reports), strict=True)
    return [f"- {inline(report.title)}: bandwidth {inline(text)}" for report, text in words if text]


def _table(table: Table) -> str:
    """Figures, and the titles above them, are ours; everything else may be somebody's text."""
    heads = [
        column.title if column.numeric and column.backend is None else inline(column.title) for column in table.columns
    ]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [
        [
            field.text if column.numeric else inline(field.text)
            for column, field in zip(table.columns, row.fields, strict=True)
        ]
        for row in table.rows
    ]
    lines = [heads, rules, *rows]
    return f"{inline(table.caption)}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(commands: Sequence[str]) -> list[str]:
    return [line for command in commands for line in command.splitlines()]
