"""Whether a run is worse than its baseline, for continuous integration. Pure functions.

The rule has three answers. A figure is worse if the end of its interval that is best for the run is beyond the limit.
It is ok if the end that is worst for the run is not. Else the trials or questions do not tell: it is inconclusive.

Among m figures some would be beyond a limit by chance, so that a figure has to be worse by an interval with a
confidence of 1 − 0.05 ÷ m (Bonferroni): of the gates of runs that are just at their limits at most one in twenty fails
by chance, however many cells there are. To pass, each figure has to be ok by its own 95 % interval. That needs no
correction, since a gate passes wrongly only if a figure that is beyond its limit is taken for ok, whatever the others
are: R. L. Berger, Technometrics 24 (1982). A loss of accuracy has to pass McNemar's test as well, corrected by Holm,
since it is exact. Memory has no noise. What is missing or failed, and is not so in the baseline, is worse.

Trials know how a process varies, not what another start gives. Runs of several starts count those instead
(`qbench.analysis.between_starts`), and with several runs as the baseline it is learnt from them
(`qbench.analysis.between_runs`); else the limit of the speed has to leave room for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qbench.analysis import between_runs
from qbench.analysis.between_runs import BetweenRuns
from qbench.analysis.figures import CellSummary, RunSummary
from qbench.analysis.power import SIGNIFICANCE, starts_needed, together, trials_needed
from qbench.analysis.summary import summarize
from qbench.decide.compare import CellChange, MemoryChange, RunComparison, SpeedChange, compare_runs
from qbench.decide.provenance import Difference, check_same_conditions, check_same_model
from qbench.errors import QbenchError
from qbench.records.run import Run
from qbench.text import one_line

Status = Literal["ok", "worse", "inconclusive"]
Unit = Literal["questions", "trials", "starts", "starts_of_each"]

NOTHING: tuple[None, None] = (None, None)
"""Needed to settle a figure that is settled."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What may become worse, and by how much; None: anything may."""

    slowdown: float | None = None
    """Share of the baseline's speed."""
    drop_points: float | None = None
    """Percent of the questions."""
    memory_growth: float | None = None
    """Share of the baseline's peak memory."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    cell: str
    what: Literal["cell", "speed", "accuracy", "memory"]
    batch_size: int | None
    status: Status
    change: float | None
    """Speed and memory: the run's over the baseline's. Accuracy: the run's less the baseline's, as a fraction."""
    low: float | None
    high: float | None
    """The ends of the change's 95 % interval; None for memory, and for what could not be compared."""
    limit: float | None
    """Of the change."""
    remark: str = ""
    needed: int | None = None
    """Where it is inconclusive, about how many units would settle it; None if no number would, or it is not known."""
    unit: Unit | None = None
    """What is counted: questions, trials of each run, starts of the baseline, or starts within each run."""

    @property
    def ok(self) -> bool:
        """Whether it is shown to be within its limit."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class GateResult:
    """All checks."""

    baselines: tuple[str, ...]
    run: str
    confidence: float
    """Of the interval by which a figure is worse; by which it is ok, 95 %."""
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]

    @property
    def status(self) -> Status:
        """worse if any figure is, else inconclusive if any figure is, else ok."""
        found = {check.status for check in self.checks}
        return "worse" if "worse" in found else "inconclusive" if "inconclusive" in found else "ok"

    @property
    def ok(self) -> bool:
        """Whether every figure is shown to be within its limit."""
        return self.status == "ok"


def gate(run: Run, baselines: Sequence[Run], limits: GateLimits, *, allow_partial: bool = False) -> GateResult:
    """Check `run` against the first of `baselines`, its speeds against all of them.

    Raises:
        QbenchError: no limit is given, the models differ, the baselines are not runs of the same thing, or they have
            nothing that could become worse.
    """
    if limits == GateLimits():
        raise QbenchError("gate: give at least one of --max-slowdown, --max-drop and --max-memory-growth")
    for each in baselines:
        check_same_model(each.record, run.record, "a gate needs the same model on both sides")
    baseline = baselines[0]
    for each in baselines[1:]:
        check_same_conditions(baseline.record, each.record, "give baselines that are runs of the same thing")
    own, *others = (summarize(one, allow_partial=allow_partial) for one in (run, *baselines))
    between = between_runs.estimate(others)
    compared = _compared(own, others, between, 0.95)
    confidence = together(_count(compared, limits))
    strictly = _compared(own, others, between, confidence)
    checks = list(_absent(own, others[0]))
    for cell, strict in zip(compared.cells, strictly.cells, strict=True):
        evidence = _Evidence(cell, strict, own.cell(cell.label), others[0].cell(cell.label), between)
        checks += _cell(evidence, limits)
    if not any(check.what != "cell" or not check.ok for check in checks):
        raise QbenchError(
            f"gate: {compared.first} has no figure under these limits that {compared.second} could be compared with; "
            "choose another baseline, or --allow-partial"
        )
    folders = tuple(str(each.folder) for each in baselines)
    return GateResult(folders, compared.second, confidence, tuple(checks), compared.differences)


def _count(compared: RunComparison, limits: GateLimits) -> int:
    """Intervals that decide."""
    speeds = sum(speed.ratio is not None for cell in compared.cells for speed in cell.speeds)
    accuracies = sum(cell.accuracy is not None for cell in compared.cells)
    return speeds * (limits.slowdown is not None) + accuracies * (limits.drop_points is not None)


def _compared(
    run: RunSummary, baselines: Sequence[RunSummary], between: BetweenRuns, confidence: float
) -> RunComparison:
    """The run against the first baseline, with what other starts of the baseline say of its speeds."""
    found = compare_runs(baselines[0], run, confidence=confidence, accuracy_confidence=confidence)
    cells = []
    for cell in found.cells:
        own = run.cell(cell.label)
        speeds = []
        for speed in cell.speeds:
            if speed.ratio and own:
                place, trials = (cell.label, speed.batch_size), own.at(speed.batch_size).samples
                speed = replace(speed, ratio=between_runs.widened(speed.ratio, between, place, trials, confidence))
            speeds.append(speed)
        cells.append(replace(cell, speeds=tuple(speeds)))
    return replace(found, cells=tuple(cells))


def _absent(run: RunSummary, baseline: RunSummary) -> Iterator[Check]:
    """Cells of one of the two: a missing one fails unless it had failed in the baseline, a new one if it has failed."""
    for cell in _only(baseline, run):
        yield _presence(cell.name, cell.status != "ok", f"is missing; {one_line(cell.status)} in the baseline")
    for cell in _only(run, baseline):
        yield _presence(cell.name, cell.status == "ok", f"{one_line(cell.status)}; is not in the baseline")


def _only(run: RunSummary, other: RunSummary) -> list[CellSummary]:
    return [cell for cell in run.cells if not other.cell(cell.label)]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is known of a cell that both have."""

    change: CellChange
    """With intervals of 95 %."""
    strict: CellChange
    """With the wider ones by which a figure is worse."""
    run: CellSummary | None
    baseline: CellSummary | None
    between: BetweenRuns


def _cell(found: _Evidence, limits: GateLimits) -> Iterator[Check]:
    cell = found.change
    failed, failed_before = cell.second_status != "ok", cell.first_status != "ok"
    if failed and not failed_before:
        yield _presence(cell.name, False, cell.second_status)
        return
    # Where both failed, figures that both have are compared all the same.
    yield _presence(cell.name, True, f"{cell.second_status}, in the baseline, too" if failed else "")
    for speed, strict in zip(cell.speeds, found.strict.speeds, strict=True):
        yield from _speed(found, speed, strict, limits.slowdown)
    if limits.drop_points is not None and cell.first_accuracy is not None:
        yield _accuracy(cell, found.strict, limits.drop_points)
    if limits.memory_growth is not None:
        for memory in cell.memories:
            if memory.first_bytes is not None:
                yield _memory(cell, memory, limits.memory_growth)


def check_status(low: float, strict_high: float, limit: float, *, real: bool = True) -> Status:
    """The rule: see the beginning of the module."""
    if strict_high < limit and real:
        return "worse"
    return "ok" if low >= limit else "inconclusive"


def _speed(found: _Evidence, speed: SpeedChange, strict: SpeedChange, slowdown: float | None) -> Iterator[Check]:
    name, size, remark = found.change.name, speed.batch_size, "; ".join(speed.remarks)
    newly_failed = speed.first_status is None and speed.second_status != "ok"
    if speed.second is None and (speed.first is not None or newly_failed):
        yield Check(name, "speed", size, "worse", None, None, None, None, remark)
    elif slowdown is not None and speed.first is not None and speed.second is not None:
        limit = 1 - slowdown
        if speed.ratio is None or strict.ratio is None:
            yield Check(name, "speed", size, "worse", None, None, None, limit, remark)
            return
        (low, high), (_, strict_high) = speed.ratio.bounds, strict.ratio.bounds
        if speed.ratio.low is None:
            remark = "; ".join(filter(None, [remark, "a single trial: its interval is assumed"]))
        status = check_status(low, strict_high, limit)
        needed = _speeds_needed(found, size, speed.ratio.ratio, limit) if status == "inconclusive" else NOTHING
        yield Check(name, "speed", size, status, speed.ratio.ratio, low, high, limit, remark, *needed)


def _speeds_needed(found: _Evidence, batch_size: int, ratio: float, limit: float) -> tuple[int | None, Unit]:
    """About how many starts of the baseline would settle a speed, or trials where other starts were not measured."""
    if found.between.freedom:
        return starts_needed(found.between.deviation, ratio, limit), "starts"
    if not found.run or not found.baseline:
        return None, "trials"
    own, other = (cell.at(batch_size) for cell in (found.run, found.baseline))
    several = min(len(own.starts), len(other.starts)) > 1
    return trials_needed(other.samples, own.samples, limit), "starts_of_each" if several else "trials"


def _accuracy(cell: CellChange, strict: CellChange, drop_points: float) -> Check:
    limit, found, wide = -drop_points / 100, cell.accuracy, strict.accuracy
    if found is None or wide is None or cell.p_holm is None:
        remark = "was not measured, or in part" if cell.second_accuracy is None else "other questions"
        return Check(cell.name, "accuracy", None, "worse", None, None, None, limit, remark)
    status = check_status(found.low, wide.high, limit, real=cell.p_holm < SIGNIFICANCE)
    remark = "" if found.flips else "not paired: a run has not kept its answers"
    unit: Unit | None = "questions" if status == "inconclusive" else None
    needed = found.questions_needed(limit) if unit else None
    return Check(cell.name, "accuracy", None, status, found.delta, found.low, found.high, limit, remark, needed, unit)


def _memory(cell: CellChange, memory: MemoryChange, growth: float) -> Check:
    limit, size = 1 + growth, memory.batch_size
    if memory.second_bytes is None or not memory.first_bytes:
        return Check(cell.name, "memory", size, "worse", None, None, None, limit, "was not measured")
    if not memory.comparable:
        return Check(cell.name, "memory", size, "worse", None, None, None, limit, "of other lengths")
    change = memory.second_bytes / memory.first_bytes
    return Check(cell.name, "memory", size, "ok" if change <= limit else "worse", change, None, None, limit)


def _presence(name: str, ok: bool, remark: str) -> Check:
    return Check(name, "cell", None, "ok" if ok else "worse", None, None, None, None, remark)
