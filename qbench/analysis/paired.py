"""Statistics of two cells that answered the same questions. Pure functions on arrays and counts.

A question is right or wrong for each cell, so that only the questions on which the two differ say anything about the
difference: those flips, in either direction, are all that is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qbench.analysis.formulas import Flips

RESAMPLES = 10_000


def mcnemar_p_value(flips: Flips) -> float:
    """Exact McNemar test: how likely a split of the flips at least as uneven as this is if both ways are as likely.

    min(1, Σ P(k) over all k with P(k) ≤ P(right_to_wrong)), P the binomial distribution of `flipped` trials at ½; 1
    without a flip. Q. McNemar, Psychometrika 12 (1947), in its exact form.
    """
    if not flips.flipped:
        return 1.0
    # Costs a second to import, which `qbench --help` must not pay.
    from scipy.stats import binomtest

    return float(binomtest(flips.right_to_wrong, flips.flipped).pvalue)


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
