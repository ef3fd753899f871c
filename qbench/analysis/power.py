"""What a number of questions or trials can detect, and how many it would take. Pure functions of plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SIGNIFICANCE = 0.05
"""A corrected p-value from here on says nothing of a difference."""

POWER = 0.8
"""The probability with which a difference of the size that is called detectable is detected."""

NEAREST = 1e-6
"""What is nearer to a limit than this is at it."""


def together(intervals: int) -> float:
    """The confidence of each of some intervals with which all of them hold with 95 %: 1 − 0.05 ÷ their number."""
    return 1 - SIGNIFICANCE / max(1, intervals)


def detectable_difference(
    n: int, discordance: float, confidence: float = 0.95, power: float = POWER, design_effect: float = 1.0
) -> float:
    """The smallest difference between two accuracies on the same questions that a two-sided test finds with `power`.

    R. J. Connor, Biometrics 43 (1987): a difference d needs n = (z_α √ψ + z_β √(ψ − d²))² ÷ d² questions, with ψ the
    share of questions that one cell alone has right (see also O. S. Miettinen, Biometrics 24 (1968)). Solved for d,

        d = √ψ (z_α √n + z_β √(n + z_β² − z_α²)) ÷ (n + z_β²).

    A loss of d needs a discordance of at least d, so that ψ is d itself where the formula gives more than ψ, as it does
    when hardly an answer flips. 1 ÷ n on top is the continuity correction, since the test is exact.

    Args:
        n: questions; at least 1.
        discordance: ψ, a fraction.
        confidence: 1 − α.
        design_effect: of the difference's variance; n is divided by it.

    Returns:
        A fraction, at most 1.
    """
    z_a, z_b = _quantiles(confidence, power)
    size = n / max(1.0, design_effect)
    if size <= z_a**2:
        return 1.0
    found = math.sqrt(discordance) * (z_a * math.sqrt(size) + z_b * math.sqrt(size + z_b**2 - z_a**2))
    found /= size + z_b**2
    if found >= discordance:
        # n d = (z_α + z_β √(1 − d))², a quadratic in √(1 − d).
        root = math.sqrt(size * (size - z_a**2 + z_b**2))
        found = 1 - ((root - z_a * z_b) / (size + z_b**2)) ** 2
    return min(1.0, found + 1 / size)


def detectable_between(first: float, second: float, sizes: tuple[int, int], confidence: float = 0.95) -> float:
    """The same of two accuracies on independent questions: (z_α + z_β) √(p₁ (1 − p₁) ÷ n₁ + p₂ (1 − p₂) ÷ n₂)."""
    z_a, z_b = _quantiles(confidence, POWER)
    variance = sum(p * (1 - p) / n for p, n in zip((first, second), sizes, strict=True))
    return min(1.0, (z_a + z_b) * math.sqrt(variance))


def questions_needed(
    delta: float, discordance: float, limit: float, confidence: float = 0.95, design_effect: float = 1.0
) -> int | None:
    """About how many questions would tell on which side of `limit` a difference is, if it is as it was observed.

    (z_α √(ψ₀ − limit²) + z_β √(ψ − δ²))² ÷ (δ − limit)², the size at which the score test of the limit rejects with a
    probability of 0.8; ψ₀ is ψ, or the limit where fewer answers flip than such a difference needs. With a limit of 0
    it is Connor's, see `detectable_difference`.

    Returns:
        None if the difference is at the limit, where no number is enough.
    """
    gap = abs(delta - limit)
    if gap < NEAREST:
        return None
    z_a, z_b = _quantiles(confidence, POWER)
    there, observed = max(discordance, abs(limit)) - limit**2, discordance - delta**2
    size = (z_a * math.sqrt(there) + z_b * math.sqrt(max(0.0, observed))) ** 2 / gap**2
    return math.ceil(max(1.0, design_effect) * size)


def trials_needed(
    first: Sequence[float], second: Sequence[float], limit: float, confidence: float = 0.95
) -> int | None:
    """About how many trials of each of two cells would tell whether the second is `limit` times as fast as the first.

    (z_α + z_β)² (s₁² + s₂²) ÷ (d − log limit)² + z_α² ÷ 4, with s² the variances of the logarithms of the speeds and d
    the difference of their means; the last term stands for Student's distribution (W. C. Guenther, The American
    Statistician 35 (1981)). Trials of one process: another start is another matter.

    Returns:
        None where one of the two has a single trial, or the ratio is at the limit.
    """
    logs = [[math.log(speed) for speed in speeds] for speeds in (first, second)]
    gap = statistics.fmean(logs[1]) - statistics.fmean(logs[0]) - math.log(limit)
    if min(map(len, logs)) < 2 or abs(gap) < NEAREST:
        return None
    z_a, z_b = _quantiles(confidence, POWER)
    spread = sum(map(statistics.variance, logs))
    return max(2, math.ceil((z_a + z_b) ** 2 * spread / gap**2 + z_a**2 / 4))


def starts_needed(deviation: float, ratio: float, limit: float, confidence: float = 0.95) -> int | None:
    """About how many starts of a baseline would tell on which side of `limit` one more start of a ratio is.

    The k of z_α s √(1 + 1 ÷ k) = |log ratio − log limit|, with s the deviation of a start's mean log speed: see
    `qbench.analysis.between_runs.widened`.

    Returns:
        None where one start varies by more than that itself, so that no number is enough.
    """
    z_a, _ = _quantiles(confidence, POWER)
    left = (math.log(ratio / limit) / (z_a * deviation)) ** 2 - 1 if deviation else math.inf
    return None if left <= NEAREST else max(2, math.ceil(1 / left))


def _quantiles(confidence: float, power: float) -> tuple[float, float]:
    normal = statistics.NormalDist()
    return normal.inv_cdf((1 + confidence) / 2), normal.inv_cdf(power)
