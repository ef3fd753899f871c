"""Whether a cell is worse, no worse than a margin, or neither of the two can be said. Pure functions.

No significant difference is no proof of none: few questions find nothing. So a loss is excluded only where the whole
interval of the difference lies above the margin's end, which is a test of non-inferiority at half the interval's alpha:
G. Piaggio et al., JAMA 308 (2012), the CONSORT statement for such trials; both ends inside are Schuirmann's two
one-sided tests, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987).
"""

from __future__ import annotations

from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qbench.analysis.formulas import Flips

MARGIN = 0.01
"""The loss of accuracy, a fraction, that is taken for none unless a command is told otherwise."""

_HALVINGS = 54
"""Of an interval of length 2: to the precision of a double."""


class Verdict(StrEnum):
    """What an interval says of a difference from a reference."""

    WORSE = "worse"
    BETTER = "better"
    NO_WORSE = "no_worse"
    """A loss of the margin or more is excluded."""
    INCONCLUSIVE = "inconclusive"
    """Neither a difference is there nor is a loss of the margin excluded."""


def judge(low: float, high: float, margin: float, *, real: bool) -> Verdict:
    """The verdict on a difference with this interval.

    Args:
        margin: the loss that counts as none, positive, in the interval's unit.
        real: whether a test takes the difference for more than chance, too.
    """
    if real and high < 0:
        return Verdict.WORSE
    if real and low > 0:
        return Verdict.BETTER
    return Verdict.NO_WORSE if low > -margin else Verdict.INCONCLUSIVE


def difference_interval(flips: Flips, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two accuracies on the same questions, as fractions: see `score_interval`.

    Questions of a subject resemble each other. Where that makes the difference less certain (`Flips.design_effect`
    above 1), the normal quantile becomes √(design effect) times Student's, with one degree of freedom less than there
    are subjects. For the score statistic, which grows with the root of the counts, this is the same as to divide them
    by the effect: J. N. K. Rao and A. J. Scott, Biometrics 48 (1992); E. L. Korn and B. I. Graubard, Survey Methodology
    24 (1998), for the quantile.
    """
    low, high = score_interval(flips.n, flips.right_to_wrong, flips.wrong_to_right, critical_value(flips, confidence))
    return float(low), float(high)


def critical_value(flips: Flips, confidence: float) -> float:
    """The quantile by which the two-sided interval of a difference is as wide as it is."""
    if flips.design_effect <= 1:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    from qbench.compat.scipy import stdtrit

    return float(stdtrit(flips.subjects - 1, (1 + confidence) / 2)) * float(np.sqrt(flips.design_effect))


def score_interval(
    n: ArrayLike, lost: ArrayLike, won: ArrayLike, critical: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The differences d at which |won − lost − n d| ÷ √(n (2 q + d (1 − d))) is at most `critical`: T. Tango's score
    interval for paired proportions, Statistics in Medicine 17 (1998).

    2 q + d (1 − d) is the variance of a question's difference if their mean is d, and q the share of lost questions
    that is likeliest then: (√(b² − 8 n c) − b) ÷ 4 n, b = (2 n + lost − won) d − lost − won, c = −lost d (1 − d).
    Unlike a bootstrap's, the interval has a width, about critical² ÷ n, without a single flip.

    Args:
        n: questions.
        lost: of them, those that only the first cell has right.
        won: of them, those that only the second cell has right.
        critical: the quantile, e.g. 1.96. All four are broadcast against each other.

    Returns:
        The lower and the upper ends.
    """
    n, lost, won, critical = (np.asarray(one, dtype=np.float64) for one in (n, lost, won, critical))
    upper = _upper_end(n, lost, won, critical)
    return -_upper_end(n, won, lost, critical), upper


def _upper_end(
    n: NDArray[np.float64], lost: NDArray[np.float64], won: NDArray[np.float64], critical: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By halving: the statistic falls in d, and is 0 at the observed difference."""
    low = np.broadcast_to((won - lost) / n, np.broadcast_shapes(n.shape, lost.shape, won.shape, critical.shape)).copy()
    high = np.ones_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = (n * middle - (won - lost)) ** 2 <= critical**2 * n * _variance(middle, n, lost, won)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def _variance(
    d: NDArray[np.float64], n: NDArray[np.float64], lost: NDArray[np.float64], won: NDArray[np.float64]
) -> NDArray[np.float64]:
    """2 q + d (1 − d), see `score_interval`."""
    b = (2 * n + lost - won) * d - lost - won
    c = -lost * d * (1 - d)
    q = (np.sqrt(np.maximum(0.0, b**2 - 8 * n * c)) - b) / (4 * n)
    return np.asarray(np.maximum(0.0, 2 * q + d * (1 - d)))
