"""What is reported of a run: its figures, with what was predicted, and what it says of itself in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qbench.analysis.figures import CellSummary
from qbench.analysis.subjects import Subject
from qbench.analysis.tasks import TaskResult
from qbench.machine.bandwidth import Bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as it is reported."""

    title: str
    """Its name; unique among the runs of a report."""
    model: str
    machine: str
    dtype: str
    day: str
    """When it started, UTC."""
    commands: tuple[str, ...]
    """That measure it again, on a machine like its own."""
    demo: bool
    """Whether the questions are those of the demo model."""
    configuration: str
    """As parsed, with every default, as JSON."""
    environment: tuple[tuple[str, str], ...]
    batch_sizes: tuple[int, ...]
    cells: tuple[CellSummary, ...]
    subjects: tuple[Subject, ...]
    tasks: tuple[tuple[str, TaskResult], ...]
    """By the cell's name."""
    reference: str | None
    """Name of the 16-bit cell that others are compared with."""
    ties: frozenset[frozenset[str]]
    """Pairs of names whose accuracies do not differ, see `qbench.analysis.paired.tied`."""
    settings: Mapping[str, str]
    """By measure (memory, throughput, mmlu), under which conditions it was taken."""
    bandwidth: Bandwidth | None
    electricity: float | None = None
    """The price of a kWh, where costs are asked for."""
    reading: tuple[str, ...]
    """How its verdicts and divergences are to be read."""
    crossovers: tuple[str, ...]
    """From which batch size on each cell is slower than the reference, in words."""
    tried: str
    """How much of the run there is, in words, where nothing failed."""
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    """What the report lacks, and why."""

    @property
    def accuracy_title(self) -> str:
        """What the accuracies are of, and whether they are of all questions."""
        title = "Accuracy on the demo questions" if self.demo else "MMLU accuracy"
        counts = sorted({cell.accuracy.n for cell in self.cells if cell.accuracy and cell.accuracy.partial})
        number = " to ".join(f"{n:,}" for n in dict.fromkeys([*counts[:1], *counts[-1:]]))
        return f"{title} (partial: {number} questions)" if counts else title
