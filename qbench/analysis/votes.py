"""Which of two backends people prefer by blind votes, and how many votes would tell. Pure functions.

A vote prefers one of two answers or neither. The sign test looks at the votes that prefer one: W. J. Dixon and A. M.
Mood, Journal of the American Statistical Association 41 (1946). That test alone cannot find two backends alike, and
votes without a preference say that they are: the lead, the difference of the two shares of all votes, counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from qbench.analysis.equivalence import score_interval
from qbench.analysis.paired import holm
from qbench.analysis.power import SIGNIFICANCE, questions_needed, together

MARGIN = 0.1
"""The lead, a fraction of all votes, that counts as none unless a command is told otherwise."""


class Preference(StrEnum):
    """What votes say of two backends."""

    FIRST = "first"
    SECOND = "second"
    NO_DIFFERENCE = "no_difference"
    """A lead of the margin or more is excluded, of either."""
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes on two backends."""

    first: int
    """Votes that prefer the first."""
    second: int
    ties: int
    """Votes that prefer neither."""

    @property
    def n(self) -> int:
        """All votes."""
        return self.decided + self.ties

    @property
    def decided(self) -> int:
        """Votes that prefer one."""
        return self.first + self.second

    @property
    def lead(self) -> float:
        """(first − second) ÷ n, of at least one vote."""
        return (self.first - self.second) / self.n


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a tally, with what it comes from."""

    tally: Tally
    verdict: Preference
    p_value: float
    """See `sign_test`."""
    p_holm: float
    """Corrected by Holm over all pairs that are judged at once."""
    share: tuple[float, float]
    """Clopper–Pearson interval of the probability that a vote which prefers one prefers the first."""
    lead: tuple[float, float]
    """Tango's score interval of the lead, see `qbench.analysis.equivalence.score_interval`."""
    confidence: float
    """Of both intervals."""
    margin: float
    needed: int | None
    """About how many votes would settle it; None where the verdict is not inconclusive, or no number would."""


def sign_test(first: int, second: int) -> float:
    """Exact two-sided p-value of the hypothesis that either is as likely to be preferred; 1 without a vote."""
    # `scipy.stats` takes longer to import than most commands to run.
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def share_interval(first: int, second: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of the probability that the first is preferred: C. J. Clopper and E. S. Pearson, Biometrika 26
    (1934); all of [0, 1] without a vote."""
    from scipy.stats import binomtest

    if not first + second:
        return 0.0, 1.0
    found = binomtest(first, first + second).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def judge_votes(tallies: Sequence[Tally], margin: float = MARGIN) -> list[Judged]:
    """The verdicts on tallies of at least one vote each, whose intervals hold together with 95 %.

    Args:
        margin: the lead, a fraction of all votes, that counts as none.
    """
    p_values = [sign_test(tally.first, tally.second) for tally in tallies]
    confidence = together(len(tallies))
    return [
        _judge(tally, p_value, p_holm, confidence, margin)
        for tally, p_value, p_holm in zip(tallies, p_values, holm(p_values), strict=True)
    ]


def _judge(tally: Tally, p_value: float, p_holm: float, confidence: float, margin: float) -> Judged:
    critical = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = map(float, score_interval(tally.n, tally.second, tally.first, critical))
    if p_holm < SIGNIFICANCE:
        verdict = Preference.FIRST if tally.lead > 0 else Preference.SECOND
    else:
        verdict = Preference.NO_DIFFERENCE if -margin < low and high < margin else Preference.INCONCLUSIVE
    needed = votes_needed(tally, margin, confidence) if verdict is Preference.INCONCLUSIVE else None
    share = share_interval(tally.first, tally.second, confidence)
    return Judged(tally, verdict, p_value, p_holm, share, (low, high), confidence, margin, needed)


def votes_needed(tally: Tally, margin: float, confidence: float = 0.95) -> int | None:
    """About how many votes would show a preference or exclude one of the margin, if the shares stay as they are.

    The smaller of the two numbers, see `qbench.analysis.power.questions_needed`; a preference takes enough votes for
    the smallest p-value that the sign test can give, 2 ÷ 2^k of k votes for one, to be below 1 − confidence.

    Returns:
        None if no number is enough: without a lead that could be shown, at a lead of the margin or above.
    """
    lead, share = abs(tally.lead), tally.decided / tally.n
    found = []
    if (shown := questions_needed(lead, share, 0.0, confidence)) is not None:
        fewest = math.floor(1 - math.log2(1 - confidence)) + 1
        found.append(max(shown, math.ceil(fewest / share)))
    if lead < margin and (excluded := questions_needed(lead, share, margin, confidence)) is not None:
        found.append(excluded)
    return max(min(found), tally.n + 1) if found else None
