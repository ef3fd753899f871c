"""Statistics of cells that answered the same questions, and which differences between a run's cells are real.

A question is right or wrong for each cell, so that only the questions on which the two differ say anything about the
difference: those flips, in either direction, are all that is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from qbench.analysis.formulas import Flips, count_flips
from qbench.records.run import Run

RESAMPLES = 10_000

SIGNIFICANCE = 0.05
"""A corrected p-value from here on is within noise."""


def mcnemar_p_value(flips: Flips) -> float:
    """Exact McNemar test: how likely a split of the flips at least as uneven as this is if both ways are as likely.

    min(1, 2 Σ P(k) over k from 0 to the smaller count), P the binomial distribution of `flipped` trials at ½, which is
    symmetric; 1 without a flip. Q. McNemar, Psychometrika 12 (1947), in its exact form.
    """
    if not flips.flipped:
        return 1.0
    # `scipy.stats`, which has the test as a whole, takes longer to import than a run to read.
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(flips.right_to_wrong, flips.wrong_to_right), flips.flipped, 0.5)))


def delta_interval(flips: Flips, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the difference of the accuracies by a paired bootstrap of 10,000 resamples.

    A question's difference is −1, 0 or 1, so that drawing `n` questions with replacement is drawing the three counts
    from their multinomial distribution: the same resamples at a thousandth of the cost. Without a flip the interval is
    the point 0, and with few of them it is rough, where McNemar's p-value stays exact.
    """
    lost, won = flips.right_to_wrong / flips.n, flips.wrong_to_right / flips.n
    counts = np.random.default_rng(seed).multinomial(flips.n, [lost, won, max(0.0, 1 - lost - won)], RESAMPLES)
    deltas = (counts[:, 1] - counts[:, 0]) / flips.n
    low, high = np.quantile(deltas, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected so that any false discovery among them has the stated probability.

    Of m values in ascending order, the i-th (from 0) becomes the largest (m − j) p_j up to it, at most 1. S. Holm,
    Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return [float(p) for p in corrected]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second of two cells against the first."""

    flips: Flips
    p_value: float
    """Exact McNemar."""
    p_holm: float
    """Corrected by Holm over all pairs that were compared at once."""
    below_noise_floor: bool | None
    """Whether the difference is no larger than numerics alone make; None if the run has not measured that."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in accuracy, see `delta_interval`."""
        return delta_interval(self.flips)

    @property
    def differs(self) -> bool:
        """Whether the difference is taken for real."""
        return self.p_holm < SIGNIFICANCE and not self.below_noise_floor


def compare(run: Run, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Comparison]:
    """Compare pairs of cells on the questions that both answered; a pair without any is left out."""
    flips = {pair: found for pair in pairs if (found := _flips(run, *pair))}
    p_values = [mcnemar_p_value(found) for found in flips.values()]
    floor = noise_floor(run)
    return {
        pair: Comparison(found, p_value, p_holm, None if floor is None else is_below(found, floor))
        for (pair, found), p_value, p_holm in zip(flips.items(), p_values, holm(p_values), strict=True)
    }


def tied(run: Run, labels: Iterable[str]) -> set[frozenset[str]]:
    """The pairs among these cells whose accuracies do not differ; Holm's correction is over all pairs of them."""
    compared = compare(run, combinations(labels, 2))
    return {frozenset(pair) for pair, comparison in compared.items() if not comparison.differs}


def noise_floor(run: Run) -> Flips | None:
    """What numerics alone move: the reference against itself at another batch size; None if it was not measured."""
    rows = run.noise[run.noise["label"] == run.reference]
    if rows.empty:
        return None
    row = rows.iloc[-1]
    return Flips(int(row["n"]), int(row["right_to_wrong"]), int(row["wrong_to_right"]))


def answer_flips(first: pd.Series[bool], second: pd.Series[bool]) -> Flips | None:
    """Of two cells' answers, indexed as in `Run.answers`: on the questions in both; None without any."""
    common = pd.concat([first, second], axis=1, join="inner", keys=["first", "second"])
    return count_flips(common["first"].to_numpy(bool), common["second"].to_numpy(bool)) if len(common) else None


def _flips(run: Run, first: str, second: str) -> Flips | None:
    if first not in run.answers or second not in run.answers:
        return None
    return answer_flips(run.answers[first], run.answers[second])


def is_below(flips: Flips, floor: Flips) -> bool:
    """No larger share of answers flips, or the accuracy moves no further, than from one batch size to another."""
    if not floor.flipped:
        return False
    return flips.flipped / flips.n <= floor.flipped / floor.n or abs(flips.delta) <= abs(floor.delta)
