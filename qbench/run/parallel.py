"""Several cells at once, each watched by a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from qbench.records.rows import CellRow
from qbench.run.events import ProgressEvent

MAX_THREADS = 64
"""Cells that are under way or wait for room at once."""


def run(
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
                for done in as_completed(measured):
                    rows[measured[done]] = done.result()
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[label] for label in labels]


class Lines:
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
