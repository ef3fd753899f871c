"""Whether a run is worse than its baseline, for continuous integration. Pure functions.

The rule: a figure fails only if the end of its interval that is best for the run is beyond the limit. The intervals are
simultaneous: with m figures compared each has a confidence of 1 − 0.05 ÷ m (Bonferroni), so that of the gates of runs
that are just at their limits at most one in twenty fails by chance, however many cells there are. A loss of accuracy
has to pass McNemar's test as well, corrected by Holm, since a bootstrap of few flips is too sure of itself. Memory has
no noise. What is missing or failed, and is not so in the baseline, fails.

Trials know how a process varies, not what another start gives. With several runs as the baseline that is learnt from
them (`qbench.analysis.between_runs`); with one the limit of the speed has to leave room for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qbench.analysis import between_runs
from qbench.analysis.paired import SIGNIFICANCE
from qbench.analysis.summary import CellSummary, RunSummary, summarize
from qbench.decide.compare import CellChange, MemoryChange, RunComparison, SpeedChange, compare_runs
from qbench.decide.provenance import Difference, check_same_conditions, check_same_model
from qbench.errors import QbenchError
from qbench.records.run import Run
from qbench.text import one_line


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
    ok: bool
    change: float | None
    """Speed and memory: the run's over the baseline's. Accuracy: the run's less the baseline's, as a fraction."""
    low: float | None
    high: float | None
    """The ends of the change's interval; None for memory, and for what could not be compared."""
    limit: float | None
    """Of the change."""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class GateResult:
    """All checks; the run passes if each is ok."""

    baselines: tuple[str, ...]
    run: str
    confidence: float
    """Of each interval."""
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is worse."""
        return all(check.ok for check in self.checks)


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
    count = _count(compare_runs(others[0], own), limits)
    confidence = 1 - 0.05 / max(1, count)
    compared = compare_runs(others[0], own, confidence=confidence)
    cells = _widened(compared.cells, own, others, confidence)
    checks = [*_absent(own, others[0]), *(check for cell in cells for check in _cell(cell, limits))]
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


def _widened(
    cells: Sequence[CellChange], run: RunSummary, baselines: Sequence[RunSummary], confidence: float
) -> Iterator[CellChange]:
    """The cells with what other starts of the baseline say of their speeds."""
    between = between_runs.estimate(baselines)
    for cell in cells:
        own = run.cell(cell.label)
        speeds = []
        for speed in cell.speeds:
            if speed.ratio and own:
                place, trials = (cell.label, speed.batch_size), own.at(speed.batch_size).trials
                speed = replace(speed, ratio=between_runs.widened(speed.ratio, between, place, trials, confidence))
            speeds.append(speed)
        yield replace(cell, speeds=tuple(speeds))


def _absent(run: RunSummary, baseline: RunSummary) -> Iterator[Check]:
    """Cells of one of the two: a missing one fails unless it had failed in the baseline, a new one if it has failed."""
    for cell in _only(baseline, run):
        yield _presence(cell.name, cell.status != "ok", f"is missing; {one_line(cell.status)} in the baseline")
    for cell in _only(run, baseline):
        yield _presence(cell.name, cell.status == "ok", f"{one_line(cell.status)}; is not in the baseline")


def _only(run: RunSummary, other: RunSummary) -> list[CellSummary]:
    return [cell for cell in run.cells if not other.cell(cell.label)]


def _cell(cell: CellChange, limits: GateLimits) -> Iterator[Check]:
    failed, failed_before = cell.second_status != "ok", cell.first_status != "ok"
    if failed and not failed_before:
        yield _presence(cell.name, False, cell.second_status)
        return
    # Where both failed, figures that both have are compared all the same.
    yield _presence(cell.name, True, f"{cell.second_status}, in the baseline, too" if failed else "")
    for speed in cell.speeds:
        yield from _speed(cell, speed, limits.slowdown)
    if limits.drop_points is not None and cell.first_accuracy is not None:
        yield _accuracy(cell, limits.drop_points)
    if limits.memory_growth is not None:
        for memory in cell.memories:
            if memory.first_bytes is not None:
                yield _memory(cell, memory, limits.memory_growth)


def _speed(cell: CellChange, speed: SpeedChange, slowdown: float | None) -> Iterator[Check]:
    remark = "; ".join(speed.remarks)
    newly_failed = speed.first_status is None and speed.second_status != "ok"
    if speed.second is None and (speed.first is not None or newly_failed):
        yield Check(cell.name, "speed", speed.batch_size, False, None, None, None, None, remark)
    elif slowdown is not None and speed.first is not None and speed.second is not None:
        limit = 1 - slowdown
        if speed.ratio is None:
            yield Check(cell.name, "speed", speed.batch_size, False, None, None, None, limit, remark)
            return
        low, high = speed.ratio.bounds
        if speed.ratio.low is None:
            remark = "; ".join(filter(None, [remark, "a single trial: its interval is assumed"]))
        yield Check(cell.name, "speed", speed.batch_size, high >= limit, speed.ratio.ratio, low, high, limit, remark)


def _accuracy(cell: CellChange, drop_points: float) -> Check:
    limit, found = -drop_points / 100, cell.accuracy
    if found is None or cell.p_holm is None:
        remark = "was not measured, or in part" if cell.second_accuracy is None else "other questions"
        return Check(cell.name, "accuracy", None, False, None, None, None, limit, remark)
    worse = found.high < limit and cell.p_holm < SIGNIFICANCE
    remark = "" if found.flips else "not paired: a run has not kept its answers"
    return Check(cell.name, "accuracy", None, not worse, found.delta, found.low, found.high, limit, remark)


def _memory(cell: CellChange, memory: MemoryChange, growth: float) -> Check:
    limit, size = 1 + growth, memory.batch_size
    if memory.second_bytes is None or not memory.first_bytes:
        return Check(cell.name, "memory", size, False, None, None, None, limit, "was not measured")
    if not memory.comparable:
        return Check(cell.name, "memory", size, False, None, None, None, limit, "of other lengths")
    change = memory.second_bytes / memory.first_bytes
    return Check(cell.name, "memory", size, change <= limit, change, None, None, limit)


def _presence(name: str, ok: bool, remark: str) -> Check:
    return Check(name, "cell", None, ok, None, None, None, None, remark)
