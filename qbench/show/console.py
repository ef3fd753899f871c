"""What a person sees while a run goes on, and the table at its end. Data keeps SI units; people get MiB and percent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.table import Table

from qbench.analysis import validity
from qbench.analysis.compare import reference_label
from qbench.analysis.stats import batch_sizes, summarize
from qbench.records.rows import CellRow
from qbench.records.run import Run, display_label
from qbench.run.events import ProgressEvent
from qbench.show import terminal
from qbench.show.phrases import accuracy_words, speedup_words, sustained_words
from qbench.show.terminal import MISSING


class LiveReporter:
    """Bars for a terminal: the cells, and the current cell's current measure with the time it has left."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._cells = progress.add_task("cells", total=None)
        self._measure = progress.add_task("", total=None, visible=False)
        self._label = ""

    def say(self, text: str) -> None:
        self._console.print(escape(text))

    def cell_started(self, label: str, number: int, total: int) -> None:
        self._label = label
        self._progress.update(self._cells, completed=number - 1, total=total, description=f"cell {label}")

    def progress(self, event: ProgressEvent) -> None:
        phase = event.what.split(",")[0]
        if self._progress.tasks[self._measure].fields.get("phase") != (self._label, phase):
            self._progress.reset(self._measure, total=event.total, visible=True, phase=(self._label, phase))
        self._progress.update(self._measure, completed=event.done, total=event.total, description=escape(event.what))

    def cell_finished(self, row: CellRow) -> None:
        self._progress.update(self._measure, visible=False)
        self._progress.advance(self._cells)
        self._console.print(finished_line(row))


class PlainReporter:
    """Lines for a file or a pipe: one for each thing that begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._prefix = ""
        self._last = ("", -1)

    def say(self, text: str) -> None:
        self._console.print(escape(text))

    def cell_started(self, label: str, number: int, total: int) -> None:
        self._prefix = f"[{number}/{total}] {label}: "

    def progress(self, event: ProgressEvent) -> None:
        """Every new step once, and within a step each further tenth."""
        now = (event.what, 10 * event.done // max(event.total, 1))
        if now != self._last and not event.done == event.total == 1:
            self._last = now
            share = f" {event.done}/{event.total}" if event.total > 1 else ""
            self._console.print(escape(f"{self._prefix}{event.what}{share}"))

    def cell_finished(self, row: CellRow) -> None:
        self._console.print(finished_line(row))


@contextmanager
def reporting(console: Console) -> Iterator[LiveReporter | PlainReporter]:
    """The reporter that fits the console."""
    if not console.is_terminal:
        yield PlainReporter(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
    )
    # Twice a second: drawing must not compete with what is being measured.
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        yield LiveReporter(console, progress)


def finished_line(row: CellRow) -> str:
    """One line that says how a cell ended."""
    if row.status == "ok":
        details = f"{row.kernel}, {row.dtype}, {human_bytes(row.peak_memory_bytes)}"
        return f"[green]ok[/] {escape(row.label)} ({escape(details)})"
    return f"[red]{row.status}[/] {escape(row.label)}: {escape(row.error or '')}"


def print_results(console: Console, run: Run) -> None:
    """The tables of a run, how to read them, and what is wrong with its files."""
    console.print(result_table(run))
    for line in _remarks(run):
        console.print(escape(line))
    compared = [table for table in (speed_table(run), quality_table(run)) if table.rows]
    for table in compared:
        console.print(table)
    if compared:
        test = "; p: McNemar's exact test, corrected by Holm over the cells" if run.answers else ""
        console.print(f"in brackets: 95 % intervals{test}")
    if noise := _noise_words(run):
        console.print(escape(noise))
    if hosts := _hosts_words(run):
        console.print(escape(hosts))
    for warning in run.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def _remarks(run: Run) -> list[str]:
    """The speeds that lasted, and what the marked ones suffer from."""
    cells = cast(list[dict[str, Any]], summarize(run).to_dict("records"))
    sustained = [
        f"sustained: {display_label(cell['backend'], cell['label'])}: {words}{validity.sustained_mark(cell)}"
        for cell in cells
        if (words := sustained_words(cell))
    ]
    return [*sustained, *validity.remarks(cells, batch_sizes(run))]


def result_table(run: Run) -> Table:
    """Memory, speed and accuracy of every cell of a run."""
    summary = summarize(run, allow_partial=True)
    speeds = [column for column in summary.columns if column.startswith("decode_tokens_per_s_b")]
    table = Table(title=escape(f"{run.record.name}: {run.record.model}"), title_justify="left")
    table.add_column("backend")
    table.add_column("kernel")
    table.add_column("bits/weight", justify="right")
    table.add_column("peak memory", justify="right")
    for column in speeds:
        table.add_column(f"tok/s at {column.removeprefix('decode_tokens_per_s_b')}", justify="right")
    table.add_column("accuracy, % [95 %]", justify="right")
    cells = run.cells.drop_duplicates("label", keep="last").set_index("label")
    for row in summary.to_dict("records"):
        cell = cells.loc[row["label"]]
        table.add_row(
            _backend(row),
            escape(_text(cell["kernel"], row["status"])),
            _number(cell["effective_bits_per_weight"], "{:.2f}"),
            human_bytes(row["peak_memory_bytes"]),
            *(_speed(row, column) for column in speeds),
            _accuracy(row),
        )
    return table


def speed_table(run: Run) -> Table:
    """Every cell's speed against the 16-bit one's; without rows if there is nothing to compare."""
    sizes = batch_sizes(run)
    table = Table(title=escape(f"speed, compared with {_reference(run)}"), title_justify="left")
    table.add_column("backend")
    for size in sizes:
        table.add_column(f"at batch {size}", justify="right")
    for row in _summary(run):
        words = [speedup_words(row, size) for size in sizes]
        if any(words):
            table.add_row(_backend(row), *(word or MISSING for word in words))
    return table


def quality_table(run: Run) -> Table:
    """Every cell's answers and predictions against the 16-bit one's; without rows if there are none."""
    table = Table(title=escape(f"quality, compared with {_reference(run)}"), title_justify="left")
    table.add_column("backend")
    table.add_column("accuracy")
    for heading in ("lost / won", "perplexity", "KL, nats", "same top token"):
        table.add_column(heading, justify="right")
    texts = run.perplexity.drop_duplicates("label", keep="last").set_index("label").to_dict("index")
    for row in _summary(run):
        text = texts.get(row["label"], {})
        if text or accuracy_words(row):
            table.add_row(_backend(row), accuracy_words(row) or MISSING, _flips(row), *_predictions(text))
    return table


def _summary(run: Run) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], summarize(run, allow_partial=True).to_dict("records"))


def _reference(run: Run) -> str:
    kinds = dict(zip(run.cells["label"], run.cells["backend"], strict=True))
    label = reference_label(run)
    return display_label(kinds[label], label) if label else MISSING


def _flips(row: dict[str, Any]) -> str:
    """Questions that only the reference has right, and that only the cell has."""
    lost, won = row["mmlu_right_to_wrong"], row["mmlu_wrong_to_right"]
    return MISSING if pd.isna(lost) else f"{lost} / {won}"


def _predictions(text: Mapping[Any, Any]) -> tuple[str, str, str]:
    """Of a row of perplexity.csv, or of none."""
    mark = ", partial" if text.get("partial") else ""
    kl = _number(text.get("kl_mean"), "{:.2e}") + _number(text.get("kl_stderr"), " ± {:.0e}").replace(MISSING, "")
    top = _number(text.get("top1_agreement"), "{:.2%}")
    return _number(text.get("perplexity"), "{:.4g}") + mark, kl, top.replace("%", " %")


def _noise_words(run: Run) -> str:
    """What the reference's second evaluation gave, as a line; empty if there was none."""
    rows = run.noise[run.noise["label"] == reference_label(run)].to_dict("records")
    if not rows:
        return ""
    row = rows[-1]
    return (
        f"noise floor, batch {row['batch_size']} against {row['repeat_batch_size']}: "
        f"{row['right_to_wrong'] + row['wrong_to_right']} of {row['n']:,} questions flip, accuracy moves by "
        f"{100 * abs(row['accuracy_delta']):.2f} points, log-probabilities by at most {row['logprob_delta_max']:.2g}"
    )


def _hosts_words(run: Run) -> str:
    """Which cell was measured where, if not all were on one machine."""
    hosts = run.cells.drop_duplicates("label", keep="last").set_index("label")["host"].dropna()
    if hosts.nunique() < 2:
        return ""
    places = "; ".join(f"{host}: {', '.join(map(str, labels))}" for host, labels in hosts.groupby(hosts).groups.items())
    return f"measured on several machines ({places}); compare memory and speed of machines that are alike"


def _backend(row: dict[Any, Any]) -> str:
    label = escape(display_label(row["backend"], row["label"]))
    return label if row["status"] == "ok" else f"{label} [red]({row['status']})[/]"


def human_bytes(value: Any) -> str:
    """Bytes as MiB or GiB; a dash for a missing value."""
    return MISSING if pd.isna(value) else terminal.human_bytes(float(value))


def _text(value: Any, otherwise: str) -> str:
    return otherwise if pd.isna(value) else str(value)


def _number(value: Any, pattern: str) -> str:
    return MISSING if pd.isna(value) else pattern.format(value)


def _speed(row: dict[Any, Any], column: str) -> str:
    size = column.removeprefix("decode_tokens_per_s_b")
    if not pd.isna(row[column]):
        return f"{row[column]:,.1f}{validity.mark(row, int(size))}"
    status = row.get(f"status_b{size}")
    return MISSING if pd.isna(status) else str(status)


def _accuracy(row: dict[Any, Any]) -> str:
    if pd.isna(row["mmlu"]):
        return MISSING
    text = f"{100 * row['mmlu']:.1f} [{100 * row['mmlu_ci_low']:.1f}, {100 * row['mmlu_ci_high']:.1f}]"
    return f"{text}, partial ({row['mmlu_n']} questions)" if row["mmlu_partial"] else text
