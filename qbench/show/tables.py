"""The tables of a run in the terminal. Data keeps SI units; people get MiB and percent."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import CellSummary, RunSummary, Speed
from qbench.analysis.summary import summarize
from qbench.records.rows import PerplexityRow
from qbench.records.run import Run
from qbench.show.formats import percent
from qbench.show.phrases import accuracy_words, load_words, ratio_words, remarks, sustained_words, truncations
from qbench.show.verdicts import detectable_words, difference_words, reading
from qbench.text import MISSING, human_bytes


def print_results(console: Console, run: Run, margin: float = MARGIN) -> None:
    """The tables of a run, how to read them, and what is wrong with its files; `margin` as of `summarize`."""
    summary = summarize(run, allow_partial=True, margin=margin)
    console.print(result_table(summary))
    for cell in summary.cells:
        if cell.sustained:
            mark = " !" if cell.sustained.doubtful else ""
            console.print(escape(f"sustained: {cell.name}: {sustained_words(cell.sustained)}{mark}"))
        for words in load_words(cell.load) if cell.load else ():
            console.print(escape(f"load: {cell.name}: {words}"))
    for cell in summary.cells:
        if cell.status == "ok" and cell.row.failed:
            console.print(f"[red]failed:[/] {escape(f'{cell.name}: {cell.row.failed}')}")
    for line in (*truncations(summary.cells), *remarks(summary.cells)):
        console.print(escape(line))
    speeds, accuracies, predictions = speed_table(summary), accuracy_table(summary), prediction_table(summary)
    for table in (speeds, accuracies, predictions):
        if table.rows:
            console.print(table)
    brackets = "in brackets: 95 % intervals" if speeds.rows or accuracies.rows else ""
    for line in (brackets, *reading(summary.cells), _noise_words(run), _hosts_words(run)):
        if line:
            console.print(escape(line))
    for warning in run.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def result_table(summary: RunSummary) -> Table:
    """Memory, speed and accuracy of every cell of a run."""
    record = summary.run.record
    table = Table(title=escape(f"{record.name}: {record.model}"), title_justify="left")
    table.add_column("backend")
    table.add_column("kernel")
    for heading in ("bits/weight", "peak memory", *(f"tok/s at {size}" for size in summary.batch_sizes)):
        table.add_column(heading, justify="right")
    table.add_column("accuracy, % [95 %]", justify="right")
    for cell in summary.cells:
        table.add_row(
            _backend(cell),
            escape(cell.row.kernel or cell.status),
            _number(cell.row.effective_bits_per_weight, "{:.2f}"),
            human_bytes(cell.peak_memory_bytes),
            *map(_speed, cell.speeds),
            accuracy_words(cell.accuracy),
        )
    return table


def speed_table(summary: RunSummary) -> Table:
    """Every cell's speed against the reference's; without rows if there is nothing to compare."""
    table = Table(title=escape(f"speed, compared with {_reference(summary)}"), title_justify="left")
    table.add_column("backend")
    for size in summary.batch_sizes:
        table.add_column(f"at batch {size}", justify="right")
    for cell in summary.cells:
        words = [ratio_words(speed.speedup) for speed in cell.speeds]
        if any(words):
            table.add_row(_backend(cell), *(word or MISSING for word in words))
    return table


def accuracy_table(summary: RunSummary) -> Table:
    """The verdict on every cell's answers against the reference's; without rows if there is none."""
    table = Table(title=escape(f"accuracy, compared with {_reference(summary)}"), title_justify="left")
    table.add_column("backend")
    table.add_column("verdict")
    for heading in ("lost / won", "detectable"):
        table.add_column(heading, justify="right")
    for cell in summary.cells:
        if words := difference_words(cell.accuracy):
            table.add_row(_backend(cell), words, _flips(cell), detectable_words(cell.accuracy))
    return table


def prediction_table(summary: RunSummary) -> Table:
    """Every cell's predictions of a text, and how far they are from the reference's; without rows if there are none."""
    table = Table(title=escape(f"predictions, compared with {_reference(summary)}"), title_justify="left")
    table.add_column("backend")
    for heading in ("perplexity", "KL, nats, at least", "not seen by KL", "same top token"):
        table.add_column(heading, justify="right")
    for cell in summary.cells:
        if cell.text:
            table.add_row(_backend(cell), *_predictions(cell.text))
    return table


def _reference(summary: RunSummary) -> str:
    return summary.reference.name if summary.reference else MISSING


def _flips(cell: CellSummary) -> str:
    """Questions that only the reference has right, and that only the cell has."""
    found = cell.accuracy.difference if cell.accuracy else None
    return f"{found.flips.right_to_wrong} / {found.flips.wrong_to_right}" if found else MISSING


def _predictions(text: PerplexityRow) -> tuple[str, ...]:
    kl = _number(text.kl_mean, "{:.2e}") + ("" if text.kl_stderr is None else f" ± {text.kl_stderr:.0e}")
    top = _number(text.top1_agreement, "{:.2%}").replace("%", " %")
    return f"{text.perplexity:.4g}{', partial' if text.partial else ''}", kl, percent(text.tail_mass_mean), top


def _noise_words(run: Run) -> str:
    """What the reference's second evaluation gave, as a line; empty if there was none."""
    rows = [row for row in run.noise if row.label == run.reference]
    if not rows:
        return ""
    row = rows[-1]
    return (
        f"noise floor, batch {row.batch_size} against {row.repeat_batch_size}: "
        f"{row.right_to_wrong + row.wrong_to_right} of {row.n:,} questions flip, accuracy moves by "
        f"{100 * abs(row.accuracy_delta):.2f} points, log-probabilities by at most {row.logprob_delta_max:.2g}"
    )


def _hosts_words(run: Run) -> str:
    """Which cell was measured where, if not all were on one machine."""
    if len(run.hosts) < 2:
        return ""
    labels = {host: ", ".join(cell.label for cell in run.cells if cell.host == host) for host in run.hosts}
    places = "; ".join(f"{host}: {there}" for host, there in labels.items())
    return f"measured on several machines ({places}); compare memory and speed of machines that are alike"


def _backend(cell: CellSummary) -> str:
    name = escape(cell.name)
    return name if cell.status == "ok" else f"{name} [red]({cell.status})[/]"


def _number(value: float | None, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value)


def _speed(speed: Speed) -> str:
    if speed.tokens_per_s is not None:
        return f"{speed.tokens_per_s:,.1f}{' !' if speed.reasons else ''}"
    return speed.status or MISSING
