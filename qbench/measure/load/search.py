"""The highest rate that keeps an objective, by bisection; pure but for the measuring that is given to it."""

from __future__ import annotations

import math
from collections.abc import Callable

from qbench.analysis.load import judge

PRECISION = 1.1
"""Rates that are no further apart than this factor are not searched between."""

MOST_DOUBLINGS = 10
"""Of the rate at which the search begins, up or down."""

Tally = tuple[int, int]
"""Requests that kept the objective, and all that count."""


class Search:
    """One search; `measure(rate)` sends a level of requests at a rate."""

    def __init__(
        self, measure: Callable[[float], Tally], attainment: float, *, repetitions: int, most_levels: int
    ) -> None:
        self._measure, self._attainment = measure, attainment
        self._repetitions, self._left = repetitions, most_levels

    def run(self, start: float) -> None:
        """Double the rate until it misses the objective, or halve it until it keeps it, then bisect the logarithm.

        The search ends when the bracket is narrower than `PRECISION`, or all levels are used. What it has found follows
        from the levels, see `qbench.analysis.load.found_rate`.
        """
        kept: float | None = None
        missed: float | None = None
        rate = start
        for _ in range(MOST_DOUBLINGS):
            if (verdict := self._keeps(rate)) is None:
                return
            kept, missed = (rate, missed) if verdict else (kept, rate)
            if kept is not None and missed is not None:
                break
            rate = rate * 2 if verdict else rate / 2
        while kept is not None and missed is not None and missed / kept > PRECISION:
            rate = math.sqrt(kept * missed)
            if (verdict := self._keeps(rate)) is None:
                return
            kept, missed = (rate, missed) if verdict else (kept, rate)

    def _keeps(self, rate: float) -> bool | None:
        """Whether a rate keeps the objective, by as many levels as it takes to tell; None if no level is left."""
        met = requests = 0
        for _ in range(self._repetitions):
            if self._left == 0:
                return met >= self._attainment * requests if requests else None
            self._left -= 1
            found = self._measure(rate)
            met, requests = met + found[0], requests + found[1]
            verdict = judge(met, requests, self._attainment) if requests else False
            if verdict is not None:
                return verdict
        return met >= self._attainment * requests
