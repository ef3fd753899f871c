"""What a person sees while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from qbench.records.rows import CellRow
from qbench.run.events import ProgressEvent
from qbench.text import human_bytes


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
    columns = (*_columns(), TextColumn("left"), TimeLeftColumn())
    # Twice a second: drawing must not compete with what is being measured.
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        yield LiveReporter(console, progress)


def _columns() -> tuple[ProgressColumn, ...]:
    return SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


T = TypeVar("T")


def followed(console: Console, things: Iterable[T], what: str, total: int) -> list[T]:
    """All of `things`, which take their time, behind a bar that goes when the last is there; nothing in a pipe."""
    with Progress(*_columns(), console=console, transient=True, disable=not console.is_terminal) as progress:
        return list(progress.track(things, total=total, description=what))


@contextmanager
def counted(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that goes at the end, for work that says how much of it is done, and of how much; nothing in a pipe."""
    with Progress(*_columns(), console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def finished_line(row: CellRow) -> str:
    """One line that says how a cell ended."""
    if row.status == "ok":
        details = f"{row.kernel}, {row.dtype}, {human_bytes(row.peak_memory_bytes)}"
        failed = f", [red]failed[/] {escape(row.failed)}" if row.failed else ""
        return f"[green]ok[/] {escape(row.label)} ({escape(details)}){failed}"
    return f"[red]{row.status}[/] {escape(row.label)}: {escape(row.error or '')}"
