"""The constraints of a recommendation: who fits, and at which constraint somebody else would. Pure functions.

A cell fits from some value of a constraint on, its need: so the answer can change at these values only. They are
rounded to what people type, a hundredth of a MiB, GiB or point, to the side where they hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from qbench.analysis.formulas import pareto_front
from qbench.decide.candidates import Candidate, points
from qbench.text import human_bytes

UNLIMITED = math.inf


class _Typed(Protocol):
    """What can be typed for a need."""

    def __call__(self, need: float, *, below: bool = False) -> float: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The constraints. A cell fits if it needs no more than either."""

    memory_bytes: float = UNLIMITED
    drop_points: float = UNLIMITED
    """Percent of the questions, against the 16-bit cell."""

    def __str__(self) -> str:
        """As they are typed."""
        memory = (
            "" if self.memory_bytes == UNLIMITED else f"--max-memory {human_bytes(self.memory_bytes).replace(' ', '')}"
        )
        drop = "" if self.drop_points == UNLIMITED else f"--max-drop {self.drop_points:g}"
        return " ".join(filter(None, (memory, drop)))


def need_memory(candidate: Candidate) -> float:
    """Bytes from which on it fits; infinite if its memory was not measured."""
    return UNLIMITED if candidate.memory_bytes is None else candidate.memory_bytes


def need_drop(candidate: Candidate) -> float:
    """The drop, in points, that has to be allowed; infinite if its accuracy was not compared.

    It is the least in the interval: a drop is exceeded when the interval's upper end is below −max_drop.
    """
    if candidate.is_reference:
        return 0.0
    return UNLIMITED if candidate.drop is None else max(0.0, -100 * candidate.drop.high)


def excess(candidate: Candidate, limits: Limits) -> str:
    """Why a candidate does not fit; empty if it does."""
    memory, drop = candidate.memory_bytes, candidate.drop
    if need_memory(candidate) > limits.memory_bytes:
        if memory is None:
            return "its memory was not measured, so that --max-memory cannot be checked"
        return f"needs {human_bytes(memory)}, {human_bytes(memory - limits.memory_bytes)} more than --max-memory"
    if need_drop(candidate) > limits.drop_points:
        if drop is None:
            return "its accuracy was not compared with a 16-bit cell's, so that --max-drop cannot be checked"
        return f"drops by more than {limits.drop_points:g} points: {points(drop)}"
    return ""


def doubt(candidate: Candidate, limits: Limits) -> str:
    """What has to be said of a candidate that fits, but may drop by more than is allowed; empty otherwise."""
    drop = candidate.drop
    if drop is None or not -100 * drop.low > limits.drop_points:
        return ""
    return f"a drop of more than {limits.drop_points:g} points cannot be excluded: {points(drop)}"


def nearby(candidates: Sequence[Candidate], limits: Limits, *, looser: bool) -> Iterator[list[Limits]]:
    """For each constraint, with the other as it is, its values at which a candidate comes in or goes, nearest first."""
    memories = [need_memory(one) for one in candidates]
    drops = [need_drop(one) for one in candidates]
    yield [replace(limits, memory_bytes=at) for at in _values(memories, limits.memory_bytes, _memory_value, looser)]
    yield [replace(limits, drop_points=at) for at in _values(drops, limits.drop_points, _hundredths, looser)]


def least(candidates: Iterable[Candidate]) -> list[Limits]:
    """The tightest pairs of constraints under which anything fits: none of them is tighter than another in both."""
    needs = [(need_memory(one), -need_drop(one)) for one in candidates]
    finite = [need for need in needs if math.isfinite(sum(need))]
    front = [finite[i] for i in pareto_front(finite)]
    return list(dict.fromkeys(Limits(_memory_value(memory), _hundredths(-drop)) for memory, drop in front))


def _values(needs: Iterable[float], limit: float, typed: _Typed, looser: bool) -> list[float]:
    finite = [need for need in needs if math.isfinite(need)]
    if looser:
        return sorted({typed(need) for need in finite if need > limit})
    return sorted({at for need in finite if need <= limit and (at := typed(need, below=True)) >= 0}, reverse=True)


def _hundredths(need: float, *, below: bool = False) -> float:
    """The least number of hundredths that is at least `need`; with `below` the largest that is less."""
    steps = math.ceil(100 * need)
    while steps / 100 < need:
        steps += 1
    while below and steps / 100 >= need:
        steps -= 1
    return steps / 100


def _memory_value(need: float, *, below: bool = False) -> float:
    """The same of bytes, in hundredths of a MiB or GiB, as `--max-memory` reads them."""
    unit = 2**20 if need < 2**30 else 2**30
    return math.floor(unit * _hundredths(need / unit, below=below))
