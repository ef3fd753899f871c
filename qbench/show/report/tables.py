"""The tables of a report: records as text, the same for the page and for BENCHMARK.md, with every plot's figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qbench.analysis.decode_step import DecodeStep
from qbench.analysis.effects import Accuracy
from qbench.analysis.paired import Comparison
from qbench.analysis.summary import CellSummary, Speed
from qbench.show import formats
from qbench.show.phrases import accuracy_words, bandwidth_words, ratio_words
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
        *_whose(reports),
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
            _text(cell.row.kernel),
            _figure(bits, formats.number(bits, "{:.2f}")),
            _figure(cell.peak_memory_bytes, human_bytes(cell.peak_memory_bytes)),
            *(_speed(cell.at(size)) for size in sizes),
            _figure(accuracy.value if accuracy else None, accuracy_words(accuracy)),
            _text(difference_words(accuracy, interval=False)),
            _figure(text.perplexity if text else None, f"{text.perplexity:.4g}" if text else MISSING),
            _figure(text.kl_mean if text else None, divergence_words(cell)),
            *([_figure(mass := text.tail_mass_mean if text else None, formats.percent(mass))] if unseen else []),
        ]

    return _by_cell("summary", "All backends: memory, speed and accuracy", reports, columns, row)


def verdicts(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell whose answers are compared; None if there is none."""
    columns = [
        *_whose(reports),
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
            fields=(*_identity(reports, report, cell), *_verdict_fields(cell.accuracy, cell.accuracy.difference)),
        )
        for i, report in enumerate(reports)
        for cell in report.cells
        if cell.accuracy and cell.accuracy.difference
    ]
    caption = "Accuracy against 16 bit, question by question"
    return Table(key="verdicts", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def _verdict_fields(accuracy: Accuracy, found: Comparison) -> list[Field]:
    flips = found.flips
    return [
        _text(difference_words(accuracy)),
        _figure(flips.right_to_wrong, f"{flips.right_to_wrong:,}"),
        _figure(flips.wrong_to_right, f"{flips.wrong_to_right:,}"),
        _figure(found.detectable, detectable_words(accuracy)),
        _figure(flips.design_effect, f"{flips.design_effect:.1f}" if flips.subjects else MISSING),
    ]


def speeds(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell and batch size; None if nothing was timed."""
    columns = [
        *_whose(reports),
        Column(title="batch"),
        Column(title="tokens/s"),
        Column(title="slowest to fastest trial"),
        Column(title="against 16 bit [95 %]"),
        Column(title="first token"),
        Column(title="between tokens, p50"),
        Column(title="p95"),
        Column(title="peak memory"),
        Column(title="read a second"),
        Column(title="of the ceiling"),
        Column(title="trust", numeric=False),
    ]
    rows = [
        TableRow(
            run=i, backend=cell.name, fields=(*_identity(reports, report, cell), *_speed_fields(report, cell, speed))
        )
        for i, report in enumerate(reports)
        for cell in report.cells
        for speed in cell.speeds
        if speed.status is not None
    ]
    caption = "Decode speed and latency: medians over trials; p50 and p95 of the time between a trial's tokens"
    return Table(key="speeds", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def _speed_fields(report: RunReport, cell: CellSummary, speed: Speed) -> list[Field]:
    ceiling = report.bandwidth.bytes_per_s if report.bandwidth else None
    read = speed.step.read_bytes_per_s if speed.step else None
    share = read / ceiling if read and ceiling else None
    slowest = min(speed.trials, default=None)
    trials = f"{formats.tokens(slowest)} to {formats.tokens(max(speed.trials))}" if speed.trials else MISSING
    return [
        _figure(speed.batch_size, str(speed.batch_size)),
        _speed(speed),
        _figure(slowest, trials),
        _figure(None, ratio_words(speed.speedup) or MISSING),
        *(_figure(value, formats.milliseconds(value)) for value in (speed.ttft_s, speed.itl_p50_s, speed.itl_p95_s)),
        _figure(speed.peak_memory_bytes, human_bytes(speed.peak_memory_bytes)),
        _figure(read, formats.gigabytes_a_second(read)),
        _figure(share, formats.percent(share, 0)),
        _trust(speed),
    ]


def steps(reports: Sequence[RunReport]) -> Table | None:
    """What a decode step reads, a row for each cell and batch size; None if that is not known of any."""
    columns = [
        *_whose(reports),
        Column(title="batch"),
        Column(title="weights read"),
        Column(title="cache read"),
        Column(title="step, at least"),
        Column(title="step, measured"),
        Column(title="measured ÷ least"),
        Column(title="tokens/s, at most"),
        Column(title="tokens/s, measured"),
    ]
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*_identity(reports, report, cell), *_step_fields(speed, speed.step)))
        for i, report in enumerate(reports)
        for cell in report.cells
        for speed in cell.speeds
        if speed.step is not None
    ]
    caption = (
        "A decode step: what it reads, mean over a generation, and the least time for that, beside the measured time"
    )
    return Table(key="steps", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def step_bandwidths(reports: Sequence[RunReport]) -> list[str]:
    """The bandwidth that each run's steps are held against, in words; empty for a run without a row in `steps`."""
    return [
        bandwidth_words(report.bandwidth) if any(speed.step for cell in report.cells for speed in cell.speeds) else ""
        for report in reports
    ]


def _step_fields(speed: Speed, step: DecodeStep) -> list[Field]:
    times, most = step.times_limit, step.limit_tokens_per_s
    return [
        _figure(step.batch_size, str(step.batch_size)),
        _figure(step.weight_bytes, human_bytes(step.weight_bytes)),
        _figure(step.cache_bytes, human_bytes(step.cache_bytes)),
        _figure(step.limit_s, formats.milliseconds(step.limit_s)),
        _figure(step.seconds, formats.milliseconds(step.seconds)),
        _figure(times, formats.number(times, "{:,.2f}×")),
        _figure(most, formats.tokens(most)),
        _speed(speed),
    ]


def sustained(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell under load; None if there was none."""
    titles = ("tokens/s at first", "at the end", "what is left")
    columns = [*_whose(reports), *(Column(title=title) for title in titles), Column(title="trust", numeric=False)]
    rows = []
    for i, report in enumerate(reports):
        for cell in report.cells:
            if found := cell.sustained:
                left = found.steady / found.peak
                fields = (
                    *_identity(reports, report, cell),
                    *(_figure(speed, formats.tokens(speed)) for speed in (found.peak, found.steady)),
                    _figure(left, formats.percent(left, 0)),
                    Field(text=formats.doubts(found.reasons) or found.validity or "not recorded", alarm=found.doubtful),
                )
                rows.append(TableRow(run=i, backend=cell.name, fields=fields))
    caption = "Under sustained load: the best window of the first third, the median of the last third"
    return Table(key="sustained", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


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
            _figure(subject.n, f"{subject.n:,}"),
            _figure(subject.reference, f"{100 * subject.reference:.1f}"),
        ]
        for name in names:
            found = subject.differences.get(name)
            if found is None:
                fields.append(_figure(None, MISSING))
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
        *_whose(reports),
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
                    *_identity(reports, report, cell),
                    Field(text=what),
                    _figure(predicted, human_bytes(predicted)),
                    _figure(measured, human_bytes(measured)),
                    _figure(off, f"{signed(100 * off, 1)} %"),
                    _figure(ceiling, formats.tokens(ceiling)),
                    _figure(speed, formats.tokens(speed)),
                )
                rows.append(TableRow(run=i, backend=cell.name, fields=fields))
    caption = "Predicted from the model's config beside measured"
    return Table(key="predicted", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def loading(reports: Sequence[RunReport]) -> Table:
    """What loading cost, and what the process took."""
    columns = [*_whose(reports), *(Column(title=title) for title in ("weights", "process grew by", "load", "quantize"))]

    def row(report: RunReport, cell: CellSummary) -> list[Field]:
        return [
            _figure(cell.row.weight_bytes, human_bytes(cell.row.weight_bytes)),
            _figure(cell.row.peak_rss_bytes, human_bytes(cell.row.peak_rss_bytes)),
            _figure(cell.row.load_s, formats.number(cell.row.load_s, "{:,.1f} s")),
            _figure(cell.row.quantize_s, formats.number(cell.row.quantize_s, "{:,.1f} s")),
        ]

    return _by_cell("loading", "Weights, and what loading and quantizing took", reports, columns, row)


def environments(reports: Sequence[RunReport]) -> Table:
    """A row for each fact, a column for each run."""
    facts = [dict(report.environment) for report in reports]
    names = list(dict.fromkeys(name for found in facts for name in found))
    columns = [Column(title="what", numeric=False), *(Column(title=report.title, numeric=False) for report in reports)]
    rows = [
        TableRow(run=-1, backend=None, fields=(Field(text=name), *(_text(found.get(name)) for found in facts)))
        for name in names
    ]
    return Table(key="environment", caption="Machine and versions", columns=tuple(columns), rows=tuple(rows))


def divergence_words(cell: CellSummary) -> str:
    """`1.44 ± 0.04`, in thousandths of a nat."""
    text = cell.text
    if text is None or text.kl_mean is None:
        return MISSING
    return f"{1e3 * text.kl_mean:.2f}" + ("" if text.kl_stderr is None else f" ± {1e3 * text.kl_stderr:.2f}")


def _by_cell(
    key: str,
    caption: str,
    reports: Sequence[RunReport],
    columns: Sequence[Column],
    row: Callable[[RunReport, CellSummary], list[Field]],
) -> Table:
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*_identity(reports, report, cell), *row(report, cell)))
        for i, report in enumerate(reports)
        for cell in report.cells
    ]
    return Table(key=key, caption=caption, columns=tuple(columns), rows=tuple(rows))


def _whose(reports: Sequence[RunReport]) -> list[Column]:
    columns = [Column(title="backend", numeric=False)]
    return columns if len(reports) == 1 else [*columns, Column(title="run", numeric=False)]


def _identity(reports: Sequence[RunReport], report: RunReport, cell: CellSummary) -> list[Field]:
    failed = cell.status != "ok"
    name = Field(text=f"{cell.name} ({cell.status})" if failed else cell.name, alarm=failed)
    return [name] if len(reports) == 1 else [name, Field(text=report.title)]


def _text(text: str | None) -> Field:
    return Field(text=text or MISSING)


def _figure(value: float | None, text: str) -> Field:
    return Field(text=text, value=value)


def _speed(speed: Speed) -> Field:
    """Tokens/s with a mark if they are not to be trusted, or why there are none."""
    if speed.tokens_per_s is None and speed.status in (None, "ok"):
        return _figure(None, MISSING)
    if speed.tokens_per_s is None:
        return Field(text=str(speed.status), alarm=True)
    mark = " !" if speed.doubtful else ""
    return Field(text=formats.tokens(speed.tokens_per_s) + mark, value=speed.tokens_per_s, alarm=bool(mark))


def _trust(speed: Speed) -> Field:
    """What speaks against a speed."""
    failed = "" if speed.status == "ok" else f"some trial: {speed.status}"
    found = ", ".join(filter(None, (failed, formats.doubts(speed.reasons))))
    return Field(text=found or speed.validity or "not recorded", alarm=bool(found))
