"""What runs a cell: on this machine (`qbench.run.local`), or on a node of a cluster (`qbench.run.ray`)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qbench.config import Backend, RunConfig
from qbench.machine.environment import Environment
from qbench.records.rows import Status
from qbench.run.events import ProgressEvent
from qbench.run.job import Job


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended that gave no row of its own."""

    status: Status
    reason: str
    host: str = field(default_factory=platform.node)
    """The machine it ran on."""


class Executor(Protocol):
    """Runs one cell to its end; events are in `out`/events.jsonl afterwards, whatever happened."""

    side_by_side: bool
    """Whether `run` may be called from several threads at once; else cells would disturb each other."""

    def prepare(self, config: RunConfig, cells: Sequence[Backend], say: Callable[[str], None]) -> Environment:
        """The machine that these cells will run on; `say` is told what a reader of their figures should know.

        Raises:
            QbenchError: there is none that can run them.
        """

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        """None when the worker ended by itself and in order."""

    def stop(self) -> None:
        """From another thread: end the cells that run, and start no more."""
