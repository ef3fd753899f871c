"""What may be chosen: the cells of one or more runs with the figures of one batch size."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.analysis import validity
from qbench.analysis.between_starts import samples
from qbench.analysis.effects import Accuracy, AccuracyDifference, accuracy_difference
from qbench.analysis.figures import CellSummary, RunSummary, Speed
from qbench.analysis.formulas import Flips
from qbench.analysis.paired import noise_floor
from qbench.analysis.power import together
from qbench.analysis.validity import REASONS
from qbench.decide.serving import Served
from qbench.records.run import Run
from qbench.text import one_line, signed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cell at a batch size."""

    name: str
    """The backend as people read it, with its run where there are several."""
    folder: Path
    model: str
    backend: str
    label: str
    bits: float | None
    """Effective bits a weight; the nominal ones where they were not recorded; None of a server that does not say."""
    memory_bytes: int | None
    """The larger of the peaks of the first forward (`cells.csv`) and of the trials at the batch size."""
    starts: tuple[tuple[float, ...], ...]
    """Decode tokens/s of the ok trials, by the process that made them."""
    energies: tuple[tuple[float, ...], ...]
    """Joules a token of the ok trials whose energy was counted, by the process that made them."""
    energy_source: str | None
    accuracy: Accuracy | None
    drop: AccuracyDifference | None
    """Against the 16-bit cell of its run; the intervals of all candidates hold together with 95 %."""
    is_reference: bool
    floor: Flips | None
    """The noise floor of its run."""
    failure: str
    """Why it cannot be chosen under any constraint; empty if it can."""
    caveats: tuple[str, ...]
    served: Served | None = None
    """Its best level under load; None unless goodput is asked for."""

    @property
    def speeds(self) -> tuple[float, ...]:
        """Decode tokens/s of the ok trials, of all starts."""
        return tuple(speed for start in self.starts for speed in start)

    @property
    def samples(self) -> tuple[float, ...]:
        """Those that its intervals count, see `qbench.analysis.between_starts.samples`."""
        return samples(self.starts)

    @property
    def energy(self) -> float | None:
        """Median joules a token; None where they were not counted."""
        return statistics.median([one for start in self.energies for one in start]) if self.energies else None

    @property
    def energy_samples(self) -> tuple[float, ...]:
        """As `samples`, of the energies."""
        return samples(self.energies)

    @property
    def speed(self) -> float | None:
        """Median of the trials, as in `summary.csv`."""
        return statistics.median(self.speeds) if self.speeds else None


def gather(
    runs: Sequence[RunSummary], batch_size: int, served: Sequence[Mapping[str, Served]] | None = None
) -> list[Candidate]:
    """The cells of all runs, in order; `served` has their levels under load, by run and label."""
    names = _run_names([one.run for one in runs])
    # Whichever is named, its interval has to hold: so all of them do together.
    compared = [cell for run in runs for cell in run.cells if cell.accuracy and cell is not run.reference]
    confidence = together(len(compared))
    return [
        _candidate(run, cell, name, batch_size, confidence, levels)
        for run, name, levels in zip(runs, names, served or [{}] * len(runs), strict=True)
        for cell in run.cells
    ]


def notes(runs: Sequence[RunSummary], batch_size: int) -> list[str]:
    """What makes the runs' figures differ besides the backends; empty for a single run."""
    cells = [cell for run in runs for cell in run.cells]
    works = {lengths for cell in cells if (lengths := cell.at(batch_size).lengths)}
    seen = {
        "models": {one.run.record.model for one in runs},
        "hardware": {one.run.record.hardware for one in runs},
        "lengths": {f"{prompt} prompt and {new} new tokens" for prompt, new in works},
        "caches": {f"keys and values in {cell.kv_cache}" for cell in cells if any(one.lengths for one in cell.speeds)},
    }
    return [f"different {what}: {one_line('; '.join(sorted(found)))}" for what, found in seen.items() if len(found) > 1]


def points(difference: AccuracyDifference) -> str:
    """`−0.12 points [−0.40, +0.15]`."""
    delta, low, high = (signed(100 * value, 2) for value in (difference.delta, difference.low, difference.high))
    return f"{delta} points [{low}, {high}]"


def _run_names(runs: Sequence[Run]) -> list[str]:
    """What to call each run beside a backend: nothing if there is one, its folder where names are not unique."""
    if len(runs) < 2:
        return [""] * len(runs)
    counts = Counter(run.record.name for run in runs)
    return [run.record.name if counts[run.record.name] == 1 else str(run.folder) for run in runs]


def _candidate(
    run: RunSummary, cell: CellSummary, run_name: str, batch_size: int, confidence: float, served: Mapping[str, Served]
) -> Candidate:
    reference, speed = run.reference, cell.at(batch_size)
    base = reference.accuracy if reference and reference is not cell else None
    drop = accuracy_difference(base, cell.accuracy, confidence) if base and cell.accuracy else None
    peaks = [peak for peak in (cell.peak_memory_bytes, speed.peak_memory_bytes) if peak is not None]
    return Candidate(
        name=f"{cell.name} ({one_line(run_name)})" if run_name else cell.name,
        folder=run.run.folder,
        model=run.run.record.model,
        backend=cell.kind,
        label=cell.label,
        bits=cell.bits_per_weight,
        memory_bytes=max(peaks, default=None),
        starts=speed.starts,
        energies=speed.energies,
        energy_source=speed.energy_source,
        accuracy=cell.accuracy,
        drop=drop,
        is_reference=cell is reference,
        floor=noise_floor(run.run),
        failure=_failure(cell, speed),
        caveats=tuple(_caveats(cell, speed, drop, served.get(cell.label))),
        served=served.get(cell.label),
    )


def _failure(cell: CellSummary, speed: Speed) -> str:
    # Older runs called a cell oom of which a larger batch did not fit.
    fits = cell.status == "oom" and speed.status == "ok"
    if cell.status != "ok" and not fits:
        return one_line(f"{cell.status}: {cell.row.error}" if cell.row.error else cell.status)
    return "" if speed.status in (None, "ok") else one_line(f"{speed.status} at batch {speed.batch_size}")


def _caveats(cell: CellSummary, speed: Speed, drop: AccuracyDifference | None, served: Served | None) -> list[str]:
    """What has to be said of a cell's figures whenever it is named."""
    found = [
        f"its speed is marked: {one_line(reason)}: {REASONS.get(reason, 'see throughput.csv')}"
        for reason in speed.reasons
    ]
    for reason in validity.reasons(served.level.validity) if served else ():
        found.append(f"its load is marked: {one_line(reason)}: {REASONS.get(reason, 'see load.csv')}")
    if speed.trials and speed.validity is None:
        found.append("the run does not say what its trials ran under")
    if cell.status == "ok" and cell.row.failed:
        found.append(one_line(f"failed: {cell.row.failed}"))
    if cell.accuracy and cell.accuracy.partial:
        found.append(f"its accuracy is partial: {cell.accuracy.n:,} questions")
    if cell.accuracy and cell.kv_cache != cell.scored_over:
        found.append(
            f"its accuracy was measured with keys and values in {cell.scored_over}, its speed with {cell.kv_cache}"
        )
    if drop and not drop.flips:
        found.append("its answers are not there, so that its accuracy is compared as of independent questions")
    return found
