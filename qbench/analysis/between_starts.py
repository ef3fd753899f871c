"""How much of a speed's variance lies between starts of a cell, and what its intervals count. Pure functions.

Trials of one process share its luck, so that a cell's speeds are a one-way layout with a random effect: the log speed
of trial j of start i is μ + aᵢ + eᵢⱼ. The mean varies as the means of starts do, and an interval that counts trials is
too narrow by the root of 1 + (n − 1) ρ, n the trials of a start and ρ the share of variance between starts. With as
many trials in each start, Student's interval of the starts' means is exact: S. R. Searle, G. Casella and C. E.
McCulloch, Variance Components (1992), chapter 3.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class VarianceShare:
    """Of the variance of log speeds, the part that lies between starts: the intraclass correlation ρ."""

    share: float
    """σ_a² ÷ (σ_a² + σ_e²)."""
    low: float
    high: float
    between: float
    """σ_a, the standard deviation of starts: about a share of the speed."""
    within: float
    """σ_e, that of the trials of a start."""
    starts: int


def samples(starts: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The speeds that are independent: the geometric mean of each start's trials; of a single start, its trials."""
    if len(starts) < 2:
        return tuple(speed for start in starts for speed in start)
    return tuple(statistics.geometric_mean(start) for start in starts)


def variance_share(starts: Sequence[Sequence[float]], confidence: float = 0.95) -> VarianceShare | None:
    """The ANOVA estimate from the log speeds of each start's trials, and its interval.

    With k starts of nᵢ trials, N in all: MSA = Σ nᵢ (mᵢ − m)² ÷ (k − 1), MSE = Σ Σ (yᵢⱼ − mᵢ)² ÷ (N − k), σ_e² = MSE,
    σ_a² = (MSA − MSE) ÷ n₀, or 0 where that is negative, n₀ = (N − Σ nᵢ² ÷ N) ÷ (k − 1). With F = MSA ÷ MSE, the ends
    are (F ÷ f − 1) ÷ (F ÷ f + n₀ − 1), f the quantiles of F with k − 1 and N − k degrees of freedom: Searle, Casella
    and McCulloch, section 3.6; exact if all nᵢ are n₀.

    Returns:
        None where there is a single start, or none with several trials, or all trials are equally fast.
    """
    logs = [np.log(np.asarray(start, dtype=np.float64)) for start in starts if len(start)]
    k, n = len(logs), sum(map(len, logs))
    if k < 2 or n == k:
        return None
    mean = np.concatenate(logs).mean()
    between = sum(len(start) * (start.mean() - mean) ** 2 for start in logs) / (k - 1)
    within = float(sum(((start - start.mean()) ** 2).sum() for start in logs) / (n - k))
    if within == 0:
        return None
    size = (n - sum(len(start) ** 2 for start in logs) / n) / (k - 1)
    from qbench.compat.scipy import fdtri

    ratio = float(between) / within
    ends = [ratio / float(fdtri(k - 1, n - k, (1 + sign * confidence) / 2)) for sign in (1, -1)]
    low, high = (max(0.0, (end - 1) / (end + size - 1)) for end in ends)
    variance = max(0.0, (float(between) - within) / size)
    share = variance / (variance + within)
    return VarianceShare(share, low, high, math.sqrt(variance), math.sqrt(within), k)
