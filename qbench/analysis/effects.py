"""Speed and accuracy of two cells, of one run or of two, with what chance allows. Pure functions.

Any two cells are compared, also such as have only one trial, or did not keep their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbench.analysis.equivalence import Verdict, difference_interval, judge
from qbench.analysis.formulas import Flips, speedup, wilson_interval
from qbench.analysis.paired import Comparison, answer_flips, detectable, paired_p_value
from qbench.analysis.power import SIGNIFICANCE, detectable_between, questions_needed
from qbench.analysis.validity import SPREAD_BOUND
from qbench.records.answers import Answers, mmlu_rows
from qbench.records.run import Run

SPEED_MARGIN = SPREAD_BOUND
"""The share of speed that counts as none: as far as trials may be apart before they are called unstable."""


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """How many times as fast the second of two cells is as the first."""

    ratio: float
    low: float | None
    high: float | None
    """The ends of `qbench.analysis.formulas.speedup`'s interval; None where one of the two has a single trial."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; without one, what trials may be apart before they are called unstable, either way."""
        if self.low is None or self.high is None:
            return self.ratio / (1 + SPREAD_BOUND), self.ratio * (1 + SPREAD_BOUND)
        return self.low, self.high

    @property
    def differs(self) -> bool:
        """Whether 1 is outside the bounds."""
        low, high = self.bounds
        return not low <= 1 <= high

    @property
    def verdict(self) -> Verdict:
        """What can be said of the second cell if a loss of `SPEED_MARGIN` counts as none; one trial shows little."""
        low, high = self.bounds
        found = judge(low - 1, high - 1, SPEED_MARGIN, real=self.differs)
        return Verdict.INCONCLUSIVE if self.low is None and found is Verdict.NO_WORSE else found


def speed_ratio(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> SpeedRatio:
    """The second's speed over the first's, from the tokens/s of their trials; see `qbench.analysis.formulas.speedup`.

    Raises:
        ValueError: there is no trial, or a speed is not positive.
    """
    return SpeedRatio(*speedup(second, first, confidence))


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A cell's result on MMLU, over all of its questions."""

    correct: int
    n: int
    questions: str
    """Which set: two cells with different ones cannot be compared."""
    asked: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """By subject, the number of questions and a hash of them, where the run has kept that."""
    truncated: int = 0
    """Questions whose prompt lost examples to the model's context."""
    partial: bool = False
    """Whether it is of part of the questions only."""
    right: Answers | None = field(default=None, repr=False, compare=False)
    """See `Run.answers`; None if the run has not kept them."""
    difference: Comparison | None = None
    """From the reference of its run; None where they were not compared."""

    def asked_the_same(self, other: Accuracy) -> bool:
        """Whether nothing says that the two are of different questions: fewer of the same ones are no others."""
        if self.questions != other.questions:
            return False
        common = [(self.asked[name], other.asked[name]) for name in self.asked if name in other.asked]
        return all(own == theirs or own[0] != theirs[0] for own, theirs in common)

    @property
    def value(self) -> float:
        """correct ÷ n, a fraction."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the value."""
        return wilson_interval(self.correct, self.n)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]


def accuracy_of(run: Run, label: str, *, allow_partial: bool = False) -> Accuracy | None:
    """A cell's result; None if it has none, or one over part of the questions only, unless `allow_partial`."""
    rows = mmlu_rows(run.accuracy, label)
    n, partial = sum(row.n for row in rows), any(row.partial for row in rows)
    if n == 0 or (partial and not allow_partial):
        return None
    data = section(run, "mmlu").get("data")
    shots = "/".join(map(str, sorted({row.num_fewshot for row in rows})))
    questions = f"{'the demo questions' if data == 'demo' else 'MMLU'}, {shots}-shot"
    return Accuracy(
        correct=sum(row.correct or 0 for row in rows),
        n=n,
        questions=questions,
        asked={row.subject: (row.n, row.asked_sha256) for row in rows if row.asked_sha256 is not None},
        truncated=sum(row.truncated or 0 for row in rows),
        partial=partial,
        right=run.answers.get(label),
    )


@dataclass(frozen=True, slots=True)
class AccuracyDifference:
    """The second of two cells less the first, as fractions."""

    delta: float
    low: float
    high: float
    p_value: float
    n: int
    """Questions that both answered; those of the smaller of the two where they are not paired."""
    flips: Flips | None
    """None where they are not paired."""
    detectable: float
    """The smallest difference that these questions would have shown, see `qbench.analysis.power`."""

    def verdict(self, margin: float, p_holm: float) -> Verdict:
        """What can be said of the second; `p_holm` is the p-value, corrected over all that is compared at once."""
        return judge(self.low, self.high, margin, real=p_holm < SIGNIFICANCE)

    def questions_needed(self, limit: float) -> int | None:
        """About how many questions would tell on which side of `limit` it is; None if no number would, or unpaired."""
        if self.flips is None:
            return None
        return questions_needed(self.delta, self.flips.discordance, limit, design_effect=self.flips.design_effect)


def accuracy_difference(first: Accuracy, second: Accuracy, confidence: float = 0.95) -> AccuracyDifference | None:
    """Paired on the questions that both answered, with Tango's interval and McNemar's p-value.

    Where answers are missing, the interval is Newcombe's and the p-value Fisher's exact one, for independent samples:
    wider, since what questions have in common is lost. None if they answered different questions.
    """
    if not first.asked_the_same(second):
        return None
    if first.right is not None and second.right is not None:
        flips = answer_flips(first.right, second.right)
        if flips is None:
            return None
        interval, least = difference_interval(flips, confidence), detectable(flips, confidence)
        return AccuracyDifference(flips.delta, *interval, paired_p_value(flips), flips.n, flips, least)
    # Takes longer to import than a run to read, and is needed by runs only that have not kept their answers.
    from scipy.stats import fisher_exact

    table = [[one.correct, one.n - one.correct] for one in (first, second)]
    delta = second.value - first.value
    interval = newcombe_interval(first, second, confidence)
    least = detectable_between(first.value, second.value, (first.n, second.n), confidence)
    p_value = float(fisher_exact(table).pvalue)
    return AccuracyDifference(delta, *interval, p_value, min(first.n, second.n), None, least)


def newcombe_interval(first: Accuracy, second: Accuracy, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of p₂ − p₁ of independent samples: d − √((p₂ − l₂)² + (u₁ − p₁)²) to d + √((u₂ − p₂)² + (p₁ − l₁)²).

    l and u are the ends of each one's Wilson interval. R. G. Newcombe, Statistics in Medicine 17 (1998), method 10.
    """
    low1, high1 = wilson_interval(first.correct, first.n, confidence)
    low2, high2 = wilson_interval(second.correct, second.n, confidence)
    p1, p2 = first.value, second.value
    below = ((p2 - low2) ** 2 + (high1 - p1) ** 2) ** 0.5
    above = ((high2 - p2) ** 2 + (p1 - low1) ** 2) ** 0.5
    return p2 - p1 - below, p2 - p1 + above


def section(run: Run, measure: str) -> Mapping[str, Any]:
    """A measure's section of the configuration; empty if it was not asked for."""
    found: Mapping[str, Any] = (run.record.config.get("measure") or {}).get(measure) or {}
    return found
