"""BENCHMARK.md: the tables of a report, for a repository."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from qbench.report import tables
from qbench.report.records import RunReport
from qbench.report.table import Table


def render(reports: Sequence[RunReport]) -> str:
    """The text of the file."""
    parts = ["# Benchmark", "\n".join(_origin(report) for report in reports), "## Results"]
    parts += [_table(tables.summary(reports)), "In brackets: 95 % intervals. A `!` marks a figure not to be trusted."]
    for title, field in (("Failed", "failures"), ("Marked, or damaged", "doubts"), ("Not reported", "notes")):
        lines = [f"- {text(report.title)}: {text(line)}" for report in reports for line in getattr(report, field)]
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    for heading, table in (
        ("Speed and latency", tables.speeds(reports)),
        ("Sustained load", tables.sustained(reports)),
        ("Predicted and measured", tables.predictions(reports)),
        ("Loading", tables.loading(reports)),
    ):
        if table:
            parts += [f"## {heading}", _table(table)]
    found = [table for i, report in enumerate(reports) if (table := tables.subjects(report, i))]
    if found:
        parts += ["## By subject", *(_table(table) for table in found)]
        parts.append("`*`: more than chance (McNemar's test, corrected by Holm over all subjects and backends).")
    parts.append("## Reproduce")
    for report in reports:
        parts += [f"{text(report.title)}:", "\n".join(f"    {line}" for line in _lines(report.commands))]
    parts.append(_table(tables.environments(reports)))
    return "\n\n".join(parts) + "\n"


def text(value: str) -> str:
    """Text as it is, on one line: no markup, no HTML, no end of a table's field."""
    escaped = html.escape(" ".join(value.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped)


def _origin(report: RunReport) -> str:
    words = f"{report.model}, {report.dtype}, on {report.machine}; {report.day} UTC"
    return f"- **{text(report.title)}**: {text(words)}"


def _table(table: Table) -> str:
    heads = [column.title for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[text(field.text) for field in row.fields] for row in table.rows]
    lines = [[text(head) for head in heads], rules, *rows]
    return f"{text(table.caption)}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(commands: Sequence[str]) -> list[str]:
    return [line for command in commands for line in command.splitlines()]
