"""Statistics of cells that answered the same questions, and which differences between a run's cells are real.

A question is right or wrong for each cell, so that only the questions on which the two differ say anything about the
difference: those flips, in either direction, are all that is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np

from qbench.analysis.equivalence import MARGIN, Verdict, critical_value, difference_interval, judge
from qbench.analysis.formulas import FEWEST_SUBJECTS, Flips, count_flips, design_effect
from qbench.analysis.power import SIGNIFICANCE, detectable_difference, together
from qbench.records.answers import Answers
from qbench.records.run import Run


def mcnemar_p_value(flips: Flips) -> float:
    """Exact McNemar test: how likely a split of the flips at least as uneven as this is if both ways are as likely.

    min(1, 2 Σ P(k) over k from 0 to the smaller count), P the binomial distribution of `flipped` trials at ½, which is
    symmetric; 1 without a flip. Q. McNemar, Psychometrika 12 (1947), in its exact form.
    """
    if not flips.flipped:
        return 1.0
    # `scipy.stats` has the test as a whole, and takes longer to import than a run to read.
    from qbench.compat.scipy import bdtr

    return min(1.0, 2 * float(bdtr(min(flips.right_to_wrong, flips.wrong_to_right), flips.flipped, 0.5)))


def paired_p_value(flips: Flips) -> float:
    """McNemar's exact test; with questions clustered by subject also the score test, and of both the larger value.

    That one is |won − lost| ÷ √((won + lost) × design effect), against Student's distribution with one degree of
    freedom less than there are subjects: N. A. Obuchowski, Statistics in Medicine 17 (1998), with the cluster-robust
    variance at the observed difference. It is used where the design effect is above 1.
    """
    exact = mcnemar_p_value(flips)
    if flips.design_effect <= 1 or not flips.flipped:
        return exact
    from qbench.compat.scipy import stdtr

    statistic = abs(flips.delta) * flips.n / (flips.flipped * flips.design_effect) ** 0.5
    return max(exact, 2 * float(stdtr(flips.subjects - 1, -statistic)))


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
    """See `paired_p_value`."""
    p_holm: float
    """Corrected by Holm over all pairs that were compared at once."""
    below_noise_floor: bool | None
    """Whether the difference is no larger than numerics alone make; None if the run has not measured that."""
    confidence: float = 0.95
    """Of the interval: with m pairs compared at once 1 − 0.05 ÷ m (Bonferroni), so that with 95 % all of them hold."""
    margin: float = MARGIN
    """The loss, a fraction, that counts as none."""

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the difference in accuracy, see `qbench.analysis.equivalence.difference_interval`."""
        return difference_interval(self.flips, self.confidence)

    @property
    def differs(self) -> bool:
        """Whether the difference is taken for real."""
        return self.p_holm < SIGNIFICANCE and not self.below_noise_floor

    @property
    def verdict(self) -> Verdict:
        """What can be said of the second cell."""
        return judge(*self.interval, self.margin, real=self.differs)

    @property
    def detectable(self) -> float:
        """The smallest difference, a fraction, that these questions would have shown, if as many answers flip."""
        return detectable(self.flips, self.confidence)


def detectable(flips: Flips, confidence: float) -> float:
    """See `qbench.analysis.power.detectable_difference`; by the interval's own quantile."""
    effect = (critical_value(flips, confidence) / NormalDist().inv_cdf((1 + confidence) / 2)) ** 2
    return detectable_difference(flips.n, flips.discordance, confidence, design_effect=effect)


def compare(run: Run, pairs: Iterable[tuple[str, str]], margin: float = MARGIN) -> dict[tuple[str, str], Comparison]:
    """Compare pairs of cells on the questions of MMLU that both answered; a pair without any is left out."""
    return compare_answers(run.answers, pairs, margin, noise_floor(run))


def compare_answers(
    answers: Mapping[str, Answers],
    pairs: Iterable[tuple[str, str]],
    margin: float = MARGIN,
    floor: Flips | None = None,
) -> dict[tuple[str, str], Comparison]:
    """`compare` for any questions: `answers` by label; `floor` is what numerics move."""
    flips = {pair: found for pair in pairs if (found := _flips(answers, *pair))}
    p_values = [paired_p_value(found) for found in flips.values()]
    confidence = together(len(flips))
    return {
        pair: Comparison(found, p_value, p_holm, None if floor is None else is_below(found, floor), confidence, margin)
        for (pair, found), p_value, p_holm in zip(flips.items(), p_values, holm(p_values), strict=True)
    }


def tied(run: Run, labels: Iterable[str]) -> set[frozenset[str]]:
    """The pairs among these cells whose accuracies do not differ; Holm's correction is over all pairs of them."""
    compared = compare(run, combinations(labels, 2))
    return {frozenset(pair) for pair, comparison in compared.items() if not comparison.differs}


def noise_floor(run: Run) -> Flips | None:
    """What numerics alone move: the reference against itself at another batch size; None if it was not measured."""
    rows = [row for row in run.noise if row.label == run.reference]
    return Flips(rows[-1].n, rows[-1].right_to_wrong, rows[-1].wrong_to_right) if rows else None


def answer_flips(first: Answers, second: Answers) -> Flips | None:
    """Of two cells' answers: on the questions in both; None without any."""
    common = [question for question in first if question in second]
    if not common:
        return None
    before, after = (np.array([right[question] for question in common], dtype=bool) for right in (first, second))
    flips = count_flips(before, after)
    numbers = {subject: number for number, subject in enumerate(dict.fromkeys(subject for subject, _ in common))}
    if len(numbers) < FEWEST_SUBJECTS:
        return flips
    effect = design_effect(after.astype(float) - before.astype(float), np.array([numbers[name] for name, _ in common]))
    return replace(flips, design_effect=effect, subjects=len(numbers))


def _flips(answers: Mapping[str, Answers], first: str, second: str) -> Flips | None:
    if first not in answers or second not in answers:
        return None
    return answer_flips(answers[first], answers[second])


def is_below(flips: Flips, floor: Flips) -> bool:
    """No larger share of answers flips, or the accuracy moves no further, than from one batch size to another."""
    if not floor.flipped:
        return False
    return flips.flipped / flips.n <= floor.flipped / floor.n or abs(flips.delta) <= abs(floor.delta)
