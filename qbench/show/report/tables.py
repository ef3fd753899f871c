"""The tables of a report: records as text, the same for the page and for BENCHMARK.md, with every plot's figures.

Those about speed are in `speed_tables`.
"""

from __future__ import annotations

from collections.abc import Sequence

from qbench.analysis.effects import Accuracy
from qbench.analysis.figures import CellSummary
from qbench.analysis.paired import Comparison
from qbench.show import formats
from qbench.show.phrases import accuracy_words
from qbench.show.report.fields import by_cell, figure_field, identity, speed_field, text_field, whose
from qbench.show.report.table import Column, Field, Table, TableRow
from qbench.show.verdicts import detectable_words, difference_words
from qbench.show.view.records import RunReport
from qbench.text import MISSING, human_bytes, signed

Part = tuple[str, int | None, int | None, float | None, float | None]
"""What was predicted: its name, bytes predicted and measured, tokens/s predicted and measured."""


def summary(reports: Sequence[RunReport]) -> Table:
    """A row for each cell of every run."""
    sizes = sorted({size for report in reports for size in report.batch_sizes})
    texts = [cell.text for report in reports for cell in report.cells if cell.text]
    # Runs of older versions have not kept it.
    unseen = any(text.tail_mass_mean is not None for text in texts)
    columns = [
        *whose(reports),
        Column(title="kernel", numeric=False),
        Column(title="bits a weight"),
        Column(title="peak memory"),
        *(Column(title=f"tokens/s at batch {size}") for size in sizes),
        Column(title="accuracy [95 %]"),
        Column(title="against 16 bit", numeric=False),
        Column(title="perplexity"),
        Column(title="KL, 10⁻³ nats, at least"),
        *([Column(title="not seen by KL")] if unseen else []),
    ]

    def row(report: RunReport, cell: CellSummary) -> list[Field]:
        accuracy, text = cell.accuracy, cell.text
        bits = cell.row.effective_bits_per_weight
        return [
            text_field(cell.row.kernel),
            figure_field(bits, formats.number(bits, "{:.2f}")),
            figure_field(cell.peak_memory_bytes, human_bytes(cell.peak_memory_bytes)),
            *(speed_field(cell.at(size)) for size in sizes),
            figure_field(accuracy.value if accuracy else None, accuracy_words(accuracy)),
            text_field(difference_words(accuracy, interval=False)),
            figure_field(text.perplexity if text else None, f"{text.perplexity:.4g}" if text else MISSING),
            figure_field(text.kl_mean if text else None, divergence_words(cell)),
            *([figure_field(mass := text.tail_mass_mean if text else None, formats.percent(mass))] if unseen else []),
        ]

    return by_cell("summary", "All backends: memory, speed and accuracy", reports, columns, row)


def verdicts(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell whose answers are compared; None if there is none."""
    columns = [
        *whose(reports),
        Column(title="accuracy, against 16 bit", numeric=False),
        Column(title="answers lost"),
        Column(title="won"),
        Column(title="detectable, points"),
        Column(title="design effect"),
    ]
    rows = [
        TableRow(
            run=i,
            backend=cell.name,
            fields=(*identity(reports, report, cell), *_verdict_fields(cell.accuracy, cell.accuracy.difference)),
        )
        for i, report in enumerate(reports)
        for cell in report.cells
        if cell.accuracy and cell.accuracy.difference
    ]
    caption = "Accuracy against 16 bit, question by question"
    return Table(key="verdicts", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def tasks(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell in each task of lm-evaluation-harness; None if there is none."""
    columns = [
        *whose(reports),
        Column(title="task", numeric=False),
        Column(title="metric", numeric=False),
        Column(title="questions"),
        Column(title="accuracy [95 %]"),
        Column(title="against 16 bit", numeric=False),
        Column(title="detectable, points"),
    ]
    rows = [
        TableRow(
            run=i,
            backend=name,
            fields=(
                Field(text=name),
                *([Field(text=report.title)] if len(reports) > 1 else []),
                text_field(found.task),
                text_field(found.metric),
                figure_field(found.accuracy.n, f"{found.accuracy.n:,}"),
                figure_field(found.accuracy.value, accuracy_words(found.accuracy)),
                text_field(difference_words(found.accuracy)),
                text_field(detectable_words(found.accuracy)),
            ),
        )
        for i, report in enumerate(reports)
        for name, found in report.tasks
    ]
    caption = "Tasks, question by question"
    return Table(key="tasks", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def _verdict_fields(accuracy: Accuracy, found: Comparison) -> list[Field]:
    flips = found.flips
    return [
        text_field(difference_words(accuracy)),
        figure_field(flips.right_to_wrong, f"{flips.right_to_wrong:,}"),
        figure_field(flips.wrong_to_right, f"{flips.wrong_to_right:,}"),
        figure_field(found.detectable, detectable_words(accuracy)),
        figure_field(flips.design_effect, f"{flips.design_effect:.1f}" if flips.subjects else MISSING),
    ]


def subjects(report: RunReport, number: int) -> Table | None:
    """A row for each subject, a coloured column for each backend; None if there is nothing to compare."""
    names = [
        name for name in (cell.name for cell in report.cells) if any(name in s.differences for s in report.subjects)
    ]
    if not names:
        return None
    largest = max(abs(found.delta) for subject in report.subjects for found in subject.differences.values()) or 1.0
    columns = [
        Column(title="subject", numeric=False),
        Column(title="questions"),
        Column(title=f"{report.reference}, %"),
    ]
    columns += [Column(title=name, backend=name) for name in names]
    rows = []
    for subject in report.subjects:
        fields = [
            Field(text=subject.name.replace("_", " ")),
            figure_field(subject.n, f"{subject.n:,}"),
            figure_field(subject.reference, f"{100 * subject.reference:.1f}"),
        ]
        for name in names:
            found = subject.differences.get(name)
            if found is None:
                fields.append(figure_field(None, MISSING))
                continue
            mark = " *" if found.real else ""
            text = signed(100 * found.delta, 1) + mark
            fields.append(Field(text=text, value=found.delta, strong=bool(mark), tint=found.delta / largest))
        rows.append(TableRow(run=number, backend=None, fields=tuple(fields)))
    caption = f"{report.title}: accuracy by subject, difference to {report.reference} in points"
    return Table(key=f"subjects-{number}", caption=caption, columns=tuple(columns), rows=tuple(rows))


def predictions(reports: Sequence[RunReport]) -> Table | None:
    """Predicted beside measured, a row for each first forward and batch size; None if nothing could be predicted."""
    columns = [
        *whose(reports),
        Column(title="what", numeric=False),
        Column(title="predicted peak"),
        Column(title="measured peak"),
        Column(title="measured, against predicted"),
        Column(title="predicted tokens/s, at most"),
        Column(title="measured tokens/s"),
    ]
    rows = []
    for i, report in enumerate(reports):
        for cell in report.cells:
            parts: list[Part] = [("first forward", cell.predicted_bytes, cell.peak_memory_bytes, None, None)]
            parts += [
                (
                    f"batch {s.batch_size}",
                    s.predicted_bytes,
                    s.peak_memory_bytes,
                    s.ceiling_tokens_per_s,
                    s.tokens_per_s,
                )
                for s in cell.speeds
            ]
            for what, predicted, measured, ceiling, speed in parts:
                if predicted is None or measured is None:
                    continue
                off = measured / predicted - 1
                fields = (
                    *identity(reports, report, cell),
                    Field(text=what),
                    figure_field(predicted, human_bytes(predicted)),
                    figure_field(measured, human_bytes(measured)),
                    figure_field(off, f"{signed(100 * off, 1)} %"),
                    figure_field(ceiling, formats.tokens(ceiling)),
                    figure_field(speed, formats.tokens(speed)),
                )
                rows.append(TableRow(run=i, backend=cell.name, fields=fields))
    caption = "Predicted from the model's config beside measured"
    return Table(key="predicted", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def loading(reports: Sequence[RunReport]) -> Table:
    """What loading cost, and what the process took."""
    columns = [*whose(reports), *(Column(title=title) for title in ("weights", "process grew by", "load", "quantize"))]

    def row(report: RunReport, cell: CellSummary) -> list[Field]:
        return [
            figure_field(cell.row.weight_bytes, human_bytes(cell.row.weight_bytes)),
            figure_field(cell.row.peak_rss_bytes, human_bytes(cell.row.peak_rss_bytes)),
            figure_field(cell.row.load_s, formats.number(cell.row.load_s, "{:,.1f} s")),
            figure_field(cell.row.quantize_s, formats.number(cell.row.quantize_s, "{:,.1f} s")),
        ]

    return by_cell("loading", "Weights, and what loading and quantizing took", reports, columns, row)


def environments(reports: Sequence[RunReport]) -> Table:
    """A row for each fact, a column for each run."""
    facts = [dict(report.environment) for report in reports]
    names = list(dict.fromkeys(name for found in facts for name in found))
    columns = [Column(title="what", numeric=False), *(Column(title=report.title, numeric=False) for report in reports)]
    rows = [
        TableRow(run=-1, backend=None, fields=(Field(text=name), *(text_field(found.get(name)) for found in facts)))
        for name in names
    ]
    return Table(key="environment", caption="Machine and versions", columns=tuple(columns), rows=tuple(rows))


def divergence_words(cell: CellSummary) -> str:
    """`1.44 ± 0.04`, in thousandths of a nat."""
    text = cell.text
    if text is None or text.kl_mean is None:
        return MISSING
    return f"{1e3 * text.kl_mean:.2f}" + ("" if text.kl_stderr is None else f" ± {1e3 * text.kl_stderr:.2f}")
