"""What the figures behind a recommendation do not show: a constraint that may be missed, a tie that may be none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qbench.analysis.effects import SPEED_MARGIN, accuracy_difference, speed_ratio
from qbench.analysis.power import trials_needed
from qbench.decide.candidates import Candidate
from qbench.decide.constraints import UNLIMITED, Limits
from qbench.decide.serving import difference, requests_needed


@dataclass(frozen=True, slots=True)
class Doubt:
    """One thing that is not shown."""

    what: Literal["drop", "speed", "accuracy", "goodput", "energy"]
    """The drop may exceed its limit; or the named cell may lose more than the margin against the leader."""
    against: str
    """Name of the cell that it is compared with."""
    loss: float
    """The largest that cannot be excluded, a fraction."""
    allowed: float
    """A fraction."""
    needed: int | None
    """About how many units would settle it; None if no number would, or it is not known."""
    unit: Literal["questions", "trials", "starts", "requests a level"]


def doubts(named: Candidate, leader: Candidate, objective: str, limits: Limits, margin: float) -> Iterator[Doubt]:
    """Of a named candidate and the best by the objective, with which it is tied.

    A tie is shown where the interval excludes a loss of `SPEED_MARGIN` or, of accuracy, of `margin`: many trials or
    questions make it, and few leave it open.
    """
    drop = named.drop
    if drop and limits.drop_points != UNLIMITED and -100 * drop.low > limits.drop_points:
        allowed = limits.drop_points / 100
        yield Doubt("drop", "16 bit", -drop.low, allowed, drop.questions_needed(-allowed), "questions")
    if named is leader:
        return
    if objective == "speed":
        ratio = speed_ratio(leader.samples, named.samples)
        low, _ = ratio.bounds
        if ratio.low is None or low < 1 - SPEED_MARGIN:
            needed = trials_needed(leader.samples, named.samples, 1 - SPEED_MARGIN)
            unit: Literal["trials", "starts"] = "starts" if min(len(leader.starts), len(named.starts)) > 1 else "trials"
            yield Doubt("speed", leader.name, 1 - low, SPEED_MARGIN, needed, unit)
    if objective == "energy":
        ratio = speed_ratio(leader.energy_samples, named.energy_samples)
        _, high = ratio.bounds
        if ratio.high is None or high > 1 + SPEED_MARGIN:
            needed = trials_needed(leader.energy_samples, named.energy_samples, 1 + SPEED_MARGIN)
            several = min(len(leader.energies), len(named.energies)) > 1
            yield Doubt("energy", leader.name, high - 1, SPEED_MARGIN, needed, "starts" if several else "trials")
    if objective == "goodput" and leader.served and named.served:
        _, lowest, _ = difference(leader.served.goodput, named.served.goodput)
        loss = -lowest / leader.served.goodput.per_s if leader.served.goodput.per_s else 0.0
        if loss > SPEED_MARGIN:
            needed = requests_needed(leader.served, named.served, SPEED_MARGIN)
            yield Doubt("goodput", leader.name, loss, SPEED_MARGIN, needed, "requests a level")
    if objective == "accuracy" and leader.accuracy and named.accuracy:
        found = accuracy_difference(leader.accuracy, named.accuracy)
        if found is None or found.low <= -margin:
            needed = found.questions_needed(-margin) if found else None
            yield Doubt("accuracy", leader.name, -found.low if found else 1.0, margin, needed, "questions")
