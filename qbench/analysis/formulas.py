"""Figures from raw numbers: what a measure puts in its rows, and the intervals of a single figure.

Pure functions of plain numbers and arrays, without tables; each figure's formula stands in its docstring.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def prefill_tokens_per_s(batch_size: int, prompt_tokens: int, ttft_s: float) -> float:
    """batch_size × prompt_tokens ÷ ttft_s.

    Raises:
        ValueError: `ttft_s` is not positive.
    """
    if not ttft_s > 0:
        raise ValueError(f"the time to the first token must be positive, not {ttft_s} s")
    return batch_size * prompt_tokens / ttft_s


def decode_tokens_per_s(batch_size: int, step_s: Sequence[float]) -> float:
    """batch_size × len(step_s) ÷ sum(step_s), where `step_s` holds the steps after the first token.

    Raises:
        ValueError: there is no step, or the steps took no time.
    """
    total_s = sum(step_s)
    if not total_s > 0:
        raise ValueError(f"{len(step_s)} decode steps in {total_s} s give no speed")
    return batch_size * len(step_s) / total_s


def quantile(values: Sequence[float], q: float) -> float:
    """The value at position q × (len(values) − 1) of the sorted values, interpolated linearly between neighbours.

    Raises:
        ValueError: there is no value, or `q` is outside 0..1.
    """
    if not len(values):
        raise ValueError("a quantile needs at least one value")
    return float(np.quantile(values, q))


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the true accuracy by Wilson's score: (c ± h) ÷ (1 + z²/n).

    c = p + z²/2n, h = z √(p(1 − p)/n + z²/4n²), with p = correct ÷ n and z the normal quantile at (1 + confidence) ÷ 2.

    Raises:
        ValueError: `n` is not positive, or `correct` is outside 0..n.
    """
    if n <= 0:
        raise ValueError("an accuracy over no question has no interval")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} questions cannot be right")
    p, z = correct / n, statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    center, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Where all or none are right, rounding would leave an end beside 1 or 0.
    low = 0.0 if correct == 0 else (center - half) / (1 + z**2 / n)
    return low, 1.0 if correct == n else (center + half) / (1 + z**2 / n)


def speedup(
    speeds: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """exp(mean log speed − mean log reference), the ratio of the geometric means over trials, and its interval.

    The interval is Welch's for two means of unequal variance, on logarithms: d ± t √(s²/n + s_r²/n_r), t of
    Welch and Satterthwaite's degrees of freedom. Few trials make it wide, and a single one in either place gives none.
    Speeds are of trials, or of starts: those of a single process tell nothing of what another start would give, see
    `qbench.analysis.between_starts`.

    Raises:
        ValueError: there is no trial, or a speed is not positive.
    """
    if not (speeds and reference and min(*speeds, *reference) > 0):
        raise ValueError("a speed-up needs trials of both cells with positive speeds")
    logs, reference_logs = ([math.log(speed) for speed in trials] for trials in (speeds, reference))
    ratio = math.exp(statistics.fmean(logs) - statistics.fmean(reference_logs))
    if min(len(logs), len(reference_logs)) < 2:
        return ratio, None, None
    errors = [statistics.variance(logs) / len(logs), statistics.variance(reference_logs) / len(reference_logs)]
    if sum(errors) == 0:
        return ratio, ratio, ratio
    # `scipy.stats` has the test as a whole, and takes longer to import than a run to read.
    from qbench.compat.scipy import stdtrit

    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (len(logs) - 1) + errors[1] ** 2 / (len(reference_logs) - 1))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(sum(errors))
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def mean_of_windows(values: np.ndarray[Any, Any]) -> tuple[float, float | None]:
    """Mean of `values` [windows, tokens], and its standard error: stdev of the windows' means ÷ √windows.

    Windows, not tokens, are what is counted: tokens of a window share its text, and treating them as independent would
    make the error far too small. One window gives none.
    """
    means = values.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None


def steady_state(windows: Sequence[float]) -> tuple[float, float]:
    """Speed that lasts, and the peak before: median of the last third of the windows, and maximum of the first.

    A third is ⌈len(windows) ÷ 3⌉ windows.

    Raises:
        ValueError: there is no window.
    """
    if not windows:
        raise ValueError("a steady state needs at least one window")
    third = -(-len(windows) // 3)
    return statistics.median(windows[-third:]), max(windows[:third])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other point dominates, cheapest first.

    A point dominates another if its cost is not higher, its gain not lower, and one of the two is better. Points that
    are equal do not dominate each other: all of them are on the front, or none.
    """
    by_cost = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in by_cost:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


@dataclass(frozen=True, slots=True)
class Flips:
    """How the second of two cells differs from the first on `n` common questions."""

    n: int
    right_to_wrong: int
    wrong_to_right: int
    design_effect: float = 1.0
    """Of the questions' division into subjects on the variance of `delta`, see `design_effect`."""
    subjects: int = 0
    """0 where that is not known, or there are too few to tell."""

    @property
    def flipped(self) -> int:
        """right_to_wrong + wrong_to_right."""
        return self.right_to_wrong + self.wrong_to_right

    @property
    def delta(self) -> float:
        """Difference of the accuracies, second − first: (wrong_to_right − right_to_wrong) ÷ n."""
        return (self.wrong_to_right - self.right_to_wrong) / self.n

    @property
    def discordance(self) -> float:
        """Share of the questions on which they differ: flipped ÷ n."""
        return self.flipped / self.n


FEWEST_SUBJECTS = 10
"""With fewer, the variance between subjects is itself too uncertain: questions then count as independent."""


JOULES_PER_KWH = 3.6e6


def electricity_per_million_tokens(joules_per_token: float | None, price_per_kwh: float | None) -> float | None:
    """joules_per_token × 10⁶ ÷ 3.6 × 10⁶ × price_per_kwh, in the price's currency; None without one of the two."""
    if joules_per_token is None or price_per_kwh is None:
        return None
    return joules_per_token * 1e6 / JOULES_PER_KWH * price_per_kwh


def design_effect(differences: NDArray[np.float64], subjects: NDArray[np.int64]) -> float:
    """How many times the variance of a mean over questions is what it would be if they were independent.

    The cluster-robust variance, G ÷ (G − 1) Σ (Dⱼ − nⱼ d)² ÷ n² with Dⱼ the sum over the nⱼ questions of subject j and
    d the mean of all, over Σ (dᵢ − d)² ÷ n². L. Kish, Survey Sampling (1965); E. Miller, arXiv:2411.00640, for
    evaluations of language models.

    Args:
        differences: of each question, [questions].
        subjects: the number of its subject, from 0 on, [questions].

    Returns:
        1 where the differences do not vary, or there is a single subject.
    """
    residuals = differences - differences.mean()
    sums = np.bincount(subjects, weights=residuals)
    alone = float((residuals**2).sum())
    return float((sums**2).sum()) * len(sums) / (len(sums) - 1) / alone if len(sums) > 1 and alone > 0 else 1.0


def count_flips(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Flips:
    """Count over two arrays [questions] that say of each question whether the cell is right.

    Raises:
        ValueError: there is no question, or the arrays differ in length.
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"pairs need the same questions, at least one, not {first.size} and {second.size}")
    return Flips(first.size, int((first & ~second).sum()), int((~first & second).sum()))
