"""Which backend to take: the best cell within constraints, and what would change the answer. Pure functions.

Constraints come first, then the objective; among those that chance does not separate from the best, the smaller memory
wins, then fewer bits, then speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from qbench.analysis.effects import AccuracyDifference, accuracy_difference, speed_ratio
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import RunSummary
from qbench.analysis.paired import holm, is_below
from qbench.analysis.power import SIGNIFICANCE
from qbench.analysis.summary import summarize
from qbench.decide.candidates import Candidate, gather, notes
from qbench.decide.constraints import UNLIMITED, Limits, excess, least, nearby, need_memory
from qbench.decide.doubts import Doubt, doubts
from qbench.decide.serving import difference, served
from qbench.decide.serving import objective as agreed
from qbench.errors import QbenchError
from qbench.records.run import Run

if TYPE_CHECKING:  # configurations take longer to import than a run to read
    from qbench.config import SLO

Objective = Literal["speed", "memory", "accuracy", "goodput", "energy"]


@dataclass(frozen=True, slots=True)
class Pick:
    """The best of some candidates."""

    named: Candidate
    leader: Candidate
    """Best by the objective alone."""
    tied: tuple[Candidate, ...]
    """Those that chance does not separate from the leader, and the leader."""


@dataclass(frozen=True, slots=True)
class Change:
    """Constraints under which the answer is another."""

    limits: Limits
    named: Candidate | None
    """None: nothing fits then."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer, and what it depends on."""

    objective: Objective
    batch_size: int
    limits: Limits
    fitting: int
    """How many there were to choose among."""
    pick: Pick | None
    runner_up: Candidate | None
    binding: tuple[Change, ...]
    """Each constraint without which another would be named."""
    changes: tuple[Change, ...]
    """The nearest constraints at which another would be named; where nothing fits, those at which something would."""
    excluded: tuple[tuple[Candidate, str], ...]
    notes: tuple[str, ...]
    doubts: tuple[Doubt, ...]
    """What the figures do not show of the answer: with any, it is inconclusive."""
    slo: SLO | None = None
    """What goodput is counted by; None for other objectives."""


def recommend(
    runs: Sequence[Run],
    batch_size: int,
    objective: Objective,
    limits: Limits,
    *,
    allow_partial: bool = False,
    margin: float = MARGIN,
    slo: SLO | None = None,
) -> Recommendation:
    """Name a cell of `runs`; `margin` is the loss of accuracy, a fraction, that counts as none.

    Goodput is that of each cell's best level under `slo`, or else under what the runs' configuration says.

    Raises:
        QbenchError: no run has measured the batch size, runs that answered different questions are to be compared by
            accuracy, or runs of different objectives by goodput.
    """
    summaries = [summarize(run, allow_partial=allow_partial) for run in runs]
    slo = _slo(summaries, objective, slo)
    candidates = gather(summaries, batch_size, [served(run, slo) for run in summaries] if slo else None)
    _check(summaries, candidates, batch_size, objective)
    # A first forward is no generation at this batch size: its peak is not held against one.
    timed = any(one.speeds for one in candidates) and (objective == "memory" or limits.memory_bytes != UNLIMITED)
    obstacles = [(one, _obstacle(one, batch_size, objective, timed=timed)) for one in candidates]
    usable = [one for one, why in obstacles if not why]
    pick = choose(usable, objective, limits)
    second = choose([one for one in usable if pick and one is not pick.named], objective, limits)
    excluded = [(one, why or excess(one, limits)) for one, why in obstacles]
    return Recommendation(
        objective=objective,
        batch_size=batch_size,
        limits=limits,
        fitting=sum(not excess(one, limits) for one in usable),
        pick=pick,
        runner_up=second.named if second else None,
        binding=tuple(_binding(usable, pick, objective, limits)) if pick else (),
        changes=tuple(_changes(usable, pick, objective, limits) if pick else _relaxations(usable, objective, limits)),
        excluded=tuple((one, why) for one, why in excluded if why),
        notes=tuple(notes(summaries, batch_size)),
        doubts=tuple(doubts(pick.named, pick.leader, objective, limits, margin)) if pick else (),
        slo=slo,
    )


def choose(candidates: Iterable[Candidate], objective: Objective, limits: Limits) -> Pick | None:
    """The best of those that fit; None if none does."""
    fitting = [one for one in candidates if not excess(one, limits)]
    if not fitting:
        return None
    leader, tied = _BEST[objective](fitting)
    return Pick(min(tied, key=tie_break), leader, tuple(tied))


def _slo(runs: Sequence[RunSummary], objective: Objective, given: SLO | None) -> SLO | None:
    if objective != "goodput":
        return None
    found = {agreed(run, given) for run in runs}
    if len(found) > 1:
        words = " and ".join(sorted(map(str, found)))
        raise QbenchError(f"--objective goodput: the runs have different objectives ({words}); give one with --slo")
    return found.pop() if found else given


def _check(runs: Sequence[RunSummary], candidates: Sequence[Candidate], batch_size: int, objective: Objective) -> None:
    sizes = sorted({size for run in runs for size in run.batch_sizes})
    if batch_size not in sizes and objective != "goodput" and (sizes or objective in ("speed", "energy")):
        there = f"there are {', '.join(map(str, sizes))}" if sizes else "choose by --objective memory or accuracy"
        raise QbenchError(f"--batch {batch_size}: was not measured; {there}")
    sources = sorted({one.energy_source for one in candidates if one.energy_source})
    if objective == "energy" and len(sources) != 1:
        raise QbenchError(
            f"--objective energy: the runs read the counters {' and '.join(sources)}, of GPUs and of processors; give "
            "runs of one of them"
            if sources
            else f"--objective energy: no counter of energy was read at batch {batch_size}; choose by another "
            "objective, or measure where one can be read (docs/method.md, Energy)"
        )
    questions = sorted({one.accuracy.questions for one in candidates if one.accuracy})
    if objective == "accuracy" and len(questions) > 1:
        raise QbenchError(
            f"--objective accuracy: the runs answered {' and '.join(questions)}; give runs of one of them"
        )
    answered = [one.accuracy for one in candidates if one.accuracy]
    if objective == "accuracy" and not all(answered[0].asked_the_same(one) for one in answered[1:]):
        raise QbenchError(
            "--objective accuracy: the runs answered questions of the same names and other content; give runs of one "
            "of them"
        )


def _obstacle(candidate: Candidate, batch_size: int, objective: Objective, *, timed: bool) -> str:
    """Why a candidate cannot be named under any constraint; empty if it can."""
    if candidate.failure:
        return candidate.failure
    if objective == "speed" and not candidate.speeds:
        return f"its speed at batch {batch_size} was not measured"
    if objective == "energy" and not candidate.energies:
        return f"its energy at batch {batch_size} was not counted"
    if timed and not candidate.speeds:
        return f"its memory at batch {batch_size} was not measured"
    if objective == "goodput" and candidate.served is None:
        return "it was not measured under load, or no request was answered"
    if objective == "memory" and candidate.memory_bytes is None:
        return "its memory was not measured"
    if objective == "accuracy" and candidate.accuracy is None:
        return "its accuracy was not measured, or over part of the questions only"
    return ""


def tie_break(candidate: Candidate) -> tuple[float, float, float, str]:
    """The least of these wins among those that are tied."""
    bits = math.inf if candidate.bits is None else candidate.bits
    return need_memory(candidate), bits, -(candidate.speed or 0), candidate.name


def _by_speed(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Tied are those whose speed against the fastest has an interval with 1 in it; see `SpeedRatio.bounds`."""
    fastest = max(candidates, key=lambda one: math.fsum(map(math.log, one.samples)) / len(one.samples))
    tied = [one for one in candidates if one is fastest or not speed_ratio(fastest.samples, one.samples).differs]
    return fastest, tied


def _by_energy(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Tied are those whose energy against the least has an interval with 1 in it, as of speeds."""
    least = min(candidates, key=lambda one: math.fsum(map(math.log, one.energy_samples)) / len(one.energy_samples))
    others = [one for one in candidates if one is not least]
    return least, [least, *(one for one in others if not speed_ratio(least.energy_samples, one.energy_samples).differs)]


def _by_memory(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Tied are those with the same number of bytes: memory has no noise."""
    smallest = min(candidates, key=tie_break)
    return smallest, [one for one in candidates if one.memory_bytes == smallest.memory_bytes]


def _by_accuracy(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Tied are those that McNemar's test, after Holm's correction, or the noise floor does not tell from the best."""
    best = max(candidates, key=lambda one: one.accuracy.value if one.accuracy else 0.0)
    others = [one for one in candidates if one is not best]
    found = [difference_of(best, one) for one in others]
    p_values = holm([difference.p_value if difference else 1.0 for difference in found])
    noise = [
        one
        for one, difference, p_value in zip(others, found, p_values, strict=True)
        if p_value >= SIGNIFICANCE or _in_the_noise(one, difference)
    ]
    return best, [best, *noise]


def _by_goodput(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Tied are those whose difference from the highest has an interval with 0 in it; see `serving.difference`."""
    rated = [(one, one.served.goodput) for one in candidates if one.served]
    best, highest = max(rated, key=lambda pair: pair[1].per_s)
    return best, [one for one, found in rated if one is best or difference(highest, found)[2] >= 0]


def difference_of(first: Candidate, second: Candidate) -> AccuracyDifference | None:
    """The second's accuracy less the first's; None if it cannot be said."""
    return accuracy_difference(first.accuracy, second.accuracy) if first.accuracy and second.accuracy else None


def _in_the_noise(candidate: Candidate, difference: AccuracyDifference | None) -> bool:
    return bool(difference and difference.flips and candidate.floor and is_below(difference.flips, candidate.floor))


_BEST: dict[Objective, Callable[[Sequence[Candidate]], tuple[Candidate, list[Candidate]]]] = {
    "speed": _by_speed,
    "memory": _by_memory,
    "accuracy": _by_accuracy,
    "goodput": _by_goodput,
    "energy": _by_energy,
}
"""The best of some candidates by an objective, and those that are tied with it."""


def _binding(usable: Sequence[Candidate], pick: Pick, objective: Objective, limits: Limits) -> Iterator[Change]:
    for without in (Limits(drop_points=limits.drop_points), Limits(memory_bytes=limits.memory_bytes)):
        change = _change(usable, objective, without)
        if change.named is not pick.named:
            yield change


def _changes(usable: Sequence[Candidate], pick: Pick, objective: Objective, limits: Limits) -> Iterator[Change]:
    for looser in (False, True):
        for values in nearby(usable, limits, looser=looser):
            changes = (_change(usable, objective, at) for at in values)
            yield from _first(change for change in changes if change.named is not pick.named)


def _relaxations(usable: Sequence[Candidate], objective: Objective, limits: Limits) -> list[Change]:
    """One constraint alone where that is enough, else both."""
    alone: list[Change] = []
    for values in nearby(usable, limits, looser=True):
        alone += _first(change for at in values if (change := _change(usable, objective, at)).named)
    return alone or [_change(usable, objective, at) for at in least(usable)]


def _change(usable: Sequence[Candidate], objective: Objective, at: Limits) -> Change:
    pick = choose(usable, objective, at)
    return Change(at, pick.named if pick else None)


def _first(changes: Iterator[Change]) -> list[Change]:
    return list(islice(changes, 1))
