"""The runner's side of a cell that runs elsewhere: what it is sent, and what comes back into the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qbench.config import NOISE_SUFFIX
from qbench.measure import divergence
from qbench.records.answers import TASKS
from qbench.run.events import EventReader, ProgressEvent
from qbench.run.job import Job
from qbench.run.ray.actor import contents, unpack


@dataclass
class Mirror:
    """The files of one cell here, and how much of what the node has written is in them."""

    job: Job
    out: Path
    log: Path
    progress: Callable[[ProgressEvent], None]
    position: tuple[int, int] = (0, 0)
    """Bytes of events and of log that are here."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What the cell's folder held before."""

    def __post_init__(self) -> None:
        self.files = contents(self.out)
        self._events = EventReader(self.out / "events.jsonl")

    @property
    def compares(self) -> bool:
        """Whether the cell needs what the 16-bit cell has left."""
        reference = self.job.config.reference
        return reference is not None and reference.label != self.job.label and self.job.reference.is_file()

    def reference(self) -> dict[str, bytes]:
        """The 16-bit cell's log-probabilities."""
        return {file.name: file.read_bytes() for file in divergence.files(self.job.reference)}

    def answers(self) -> dict[str, bytes]:
        """The cell's own answer files that are here already."""
        own = {f"{self.job.label}.parquet", f"{self.job.label}{NOISE_SUFFIX}.parquet"}
        tasks = f"{self.job.label}{TASKS}"
        there = contents(self.job.answers)
        return {name: content for name, content in there.items() if name in own or name.startswith(tasks)}

    def restore(self) -> None:
        """Drop what an attempt that died has written."""
        events = self.files.get("events.jsonl", b"")
        unpack(self.out, {"events.jsonl": events})
        self.log.write_bytes(b"")
        self.position = (len(events), 0)
        self._events = EventReader(self.out / "events.jsonl")
        list(self._events.new())

    def take(self, events: bytes, log: bytes) -> None:
        """Append what is new, events durably, and pass progress on."""
        for path, new in ((self.out / "events.jsonl", events), (self.log, log)):
            if new:
                with path.open("ab") as file:
                    file.write(new)
                    file.flush()
                    os.fsync(file.fileno())
        self.position = (self.position[0] + len(events), self.position[1] + len(log))
        for event in self._events.new():
            if isinstance(event, ProgressEvent):
                self.progress(event)

    def keep(self, files: dict[str, bytes], answers: dict[str, bytes], reference: dict[str, bytes]) -> None:
        """Write what the cell leaves behind beside its events and its log."""
        unpack(self.out, files)
        unpack(self.job.answers, answers)
        if reference:
            unpack(self.job.reference.parent, reference)
