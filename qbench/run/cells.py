"""Runs the cells of a run, one after another or, on a cluster, side by side, and keeps the tables complete."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qbench.config import RunConfig
from qbench.config.trials import start_of
from qbench.records.files import remove
from qbench.records.rows import CellRow
from qbench.run import starts
from qbench.run.events import EventLog, ProgressEvent
from qbench.run.executor import Ending, Executor
from qbench.run.fingerprint import CELL
from qbench.run.folder import RunFolder
from qbench.run.job import Job, cell_row, config_of
from qbench.run.local import POLL_S

MAX_THREADS = 64
"""Cells that are under way or wait for room at once."""


class Reporter(Protocol):
    """Whoever watches the run."""

    def say(self, text: str) -> None: ...
    def cell_started(self, label: str, number: int, total: int) -> None: ...
    def progress(self, event: ProgressEvent) -> None: ...
    def cell_finished(self, row: CellRow) -> None: ...


@dataclass
class CellRunner:
    """The cells of one run: what they are made of, and where they run."""

    config: RunConfig
    folder: RunFolder
    model: Path
    model_fingerprint: str
    executor: Executor
    reporter: Reporter
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def run(self, order: Sequence[str]) -> list[CellRow]:
        """Measure what is missing of the cells, in this order or side by side; their rows.

        Every cell is measured once before any is started again, so that what changes with the hours, such as the
        machine's heat and neighbours, meets all of them.
        """
        rows = self._start(order, 0)
        for start in range(1, self.config.measure.starts):
            again = [row.label for row in rows if row.status == "ok"]
            later = {row.label: row for row in self._start(again, start)}
            rows = [later.get(row.label, row) for row in rows]
        return rows

    def _start(self, order: Sequence[str], start: int) -> list[CellRow]:
        """What is missing of one start of some cells."""
        if self.executor.side_by_side:
            first = self.config.reference.label if self.config.reference else None
            one = functools.partial(self._measure_beside_others, start=start)
            return side_by_side(order, first, one, self.executor.stop)
        rows, total = [], len(order) * self.config.measure.starts
        for number, label in enumerate(order, start=1 + start * len(order)):
            row = self._kept(label, start)
            if row is None:
                self.reporter.cell_started(starts.words(self.config, label, start), number, total)
                row = self._finish(self._measure(label, self.reporter.progress, start))
            rows.append(row)
        return rows

    def _measure_beside_others(self, label: str, start: int) -> CellRow:
        row = self._kept(label, start)
        if row is None:
            lines = _Lines(starts.words(self.config, label, start), self.reporter.say)
            row = self._finish(self._measure(label, lines, start))
        return row

    def _kept(self, label: str, start: int) -> CellRow | None:
        """The cell's row if nothing of this start is missing; the first says what a rerun finds."""
        missing, parts = self.folder.missing(label), len(self.folder.units[label])
        if start == 0 and not missing:
            self.reporter.say(f"{label}: already measured, kept (--fresh measures again)")
        elif start == 0 and len(missing) < parts:
            self.reporter.say(f"{label}: goes on; kept are {parts - len(missing)} of its parts")
        return None if any(start_of(unit) == start for unit in missing) else self.folder.cell_row(label)

    def _finish(self, row: CellRow) -> CellRow:
        with self._one_at_a_time:
            self.reporter.cell_finished(row)
            self.folder.write_tables()
        return row

    def _measure(self, label: str, progress: Callable[[ProgressEvent], None], start: int) -> CellRow:
        """Run what is missing of a start of a cell to its end, whatever that is."""
        name = f"{label}.start-{start + 1}.log" if start else f"{label}.log"
        out, log = self.folder.cell(label), self.folder.path / "logs" / name
        _clear_attempt(out)
        job = Job(
            config=config_of(self.config, next(cell for cell in self.config.backends if cell.label == label)),
            label=label,
            folder=self.model,
            answers=self.folder.answers.resolve(),
            reference=self.folder.reference.resolve(),
            model_fingerprint=self.model_fingerprint,
            units=dict(self.folder.units[label]),
            missing=tuple(unit for unit in self.folder.missing(label) if start_of(unit) == start),
            start=start,
        )
        if start:
            return self._measure_again(job, out, log, progress)
        # Until the worker says how it ended, this cell has no row.
        EventLog(out / "events.jsonl").unit(CELL, job.units[CELL], (), complete=False)
        ending = self.executor.run(job, out, log, progress)
        row = self.folder.cell_row(label)
        if row is None:
            ending = ending or Ending("crashed", "the worker ended without a result")
            reason = ending.reason + _last_words(log)
            row = cell_row(self.config, job.backend, status=ending.status, error=reason, host=ending.host)
            EventLog(out / "events.jsonl").unit(CELL, job.units[CELL], [row])
        return row

    def _measure_again(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> CellRow:
        """A later start: the row of the cell is there, and a failure becomes one of the throughput."""
        ending = self.executor.run(job, out, log, progress)
        if ending:
            events = EventLog(out / "events.jsonl")
            starts.keep_failure(events, out, job, ending.status, ending.reason + _last_words(log), ending.host)
        row = self.folder.cell_row(job.label)
        assert row is not None, "only a cell whose first start is ok is started again"
        return row


def _last_words(log: Path) -> str:
    """The last line of a worker's log, to be put behind the reason for its end; empty if it said nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return f"; its last words: {lines[-1].strip()[:300]}" if lines else ""


def _clear_attempt(out: Path) -> None:
    """Remove what an earlier worker of the cell left, except what it finished."""
    if out.is_symlink():
        out.unlink()
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.is_symlink() or path.name not in ("events.jsonl", "journal"):
            remove(path)


def side_by_side(
    labels: Sequence[str], first: str | None, measure: Callable[[str], CellRow], stop: Callable[[], None]
) -> list[CellRow]:
    """Measure cells side by side.

    Args:
        first: is measured alone, before the others, if it is one of them.
        measure: measures one cell; called from several threads.
        stop: makes all that is under way end soon. It is called when a cell raises, or when we are interrupted.

    Returns:
        The rows in the order of `labels`.
    """
    rows: dict[str, CellRow] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, max(len(labels), 1))) as pool:
        try:
            for alone in (True, False):
                measured = {pool.submit(measure, label): label for label in labels if (label == first) == alone}
                left = set(measured)
                while left:
                    # An interrupt that another thread receives, one of Ray's, is seen here only on waking up.
                    ended, left = wait(left, timeout=POLL_S, return_when=FIRST_COMPLETED)
                    rows |= {measured[done]: done.result() for done in ended}
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[label] for label in labels]


class _Lines:
    """Progress of one of several cells: a line for each step that begins, and for each further tenth of it."""

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        self._label, self._say = label, say
        self._last = ("", -1)

    def __call__(self, event: ProgressEvent) -> None:
        """Say it, unless it has been said."""
        now = (event.what, 10 * event.done // max(event.total, 1))
        if now != self._last and not event.done == event.total == 1:
            self._last = now
            share = f" {event.done}/{event.total}" if event.total > 1 else ""
            self._say(f"{self._label}: {event.what}{share}")
