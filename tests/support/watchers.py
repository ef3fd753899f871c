"""Reporters that keep what a run tells them."""

from qbench.records.rows import CellRow
from qbench.run.events import ProgressEvent


class Watcher:
    """Keeps what a reporter is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.started: list[tuple[str, int, int]] = []
        self.finished: list[CellRow] = []
        self.events: list[ProgressEvent] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def cell_started(self, label: str, number: int, total: int) -> None:
        self.started.append((label, number, total))

    def progress(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def cell_finished(self, row: CellRow) -> None:
        self.finished.append(row)
