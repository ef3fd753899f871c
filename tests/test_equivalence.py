"""Intervals and verdicts against other programs, scipy's optimizer, and simulated runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm
from scipy.stats import t as student

from qbench.analysis.equivalence import Verdict, difference_interval, judge, score_interval
from qbench.analysis.formulas import Flips, design_effect
from qbench.analysis.paired import answer_flips, compare, mcnemar_p_value, paired_p_value
from qbench.analysis.power import detectable_between, detectable_difference, questions_needed
from tests.support.made_up_run import answers, flipped, made_up_run, measured

RUNS = 2_000
Z = norm.ppf(0.975)

counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 2000)).map(
    lambda c: Flips(c[0] + c[1] + c[2], c[0], c[1])
)


def above(rate: float, runs: int = RUNS) -> float:
    """What the share of `runs` may be that have a probability of `rate`: 3.5 standard errors more."""
    return rate + 3.5 * float(np.sqrt(rate * (1 - rate) / runs))


def below(rate: float, runs: int = RUNS) -> float:
    return rate - 3.5 * float(np.sqrt(rate * (1 - rate) / runs))


@pytest.mark.parametrize(
    ("n", "lost", "won", "confidence", "interval"),
    # Of scoreci.mp in R's PropCIs 0.3-0, which stops within 1e-6.
    [
        (160, 40, 20, 0.95, (-0.218064, -0.030865)),
        (50, 7, 1, 0.95, (-0.246581, -0.011620)),
        (25, 0, 5, 0.95, (0.040169, 0.391309)),
        (30, 2, 2, 0.95, (-0.162180, 0.162180)),
        (320, 11, 4, 0.95, (-0.049684, 0.002097)),
        (50, 50, 0, 0.95, (-1.0, -0.857305)),
        (618, 25, 28, 0.90, (-0.0148344, 0.0247155)),
        # z² ÷ (n + z²) without a flip.
        (100, 0, 0, 0.95, (-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2))),
    ],
)
def test_the_interval_is_that_of_other_programs(
    n: int, lost: int, won: int, confidence: float, interval: tuple[float, float]
) -> None:
    assert difference_interval(Flips(n, lost, won), confidence) == pytest.approx(interval, abs=2e-6)


@pytest.mark.parametrize(("n", "lost", "won"), [(160, 40, 20), (400, 3, 9), (2400, 6, 1), (14_042, 382, 200)])
def test_at_the_ends_the_score_statistic_is_the_quantile(n: int, lost: int, won: int) -> None:
    """The likeliest share of lost questions is searched for, not computed."""
    for end in difference_interval(Flips(n, lost, won)):

        def unlikeliness(q: float, d: float = end) -> float:
            return -float(lost * np.log(q) + won * np.log(q + d) + (n - lost - won) * np.log(1 - 2 * q - d))

        bounds = (max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        q = minimize_scalar(unlikeliness, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        statistic = abs(won - lost - n * end) / np.sqrt(n * (2 * q + end - end**2))
        assert statistic == pytest.approx(Z, rel=1e-4)


@given(counts)
def test_the_interval_contains_the_difference_and_turns_with_it(flips: Flips) -> None:
    low, high = difference_interval(flips)
    assert -1 <= low <= flips.delta <= high <= 1
    turned = difference_interval(Flips(flips.n, flips.wrong_to_right, flips.right_to_wrong))
    assert turned == pytest.approx((-high, -low), abs=1e-12)
    lower, higher = difference_interval(flips, confidence=0.99)
    assert lower < low < high < higher or (lower, higher) in ((-1, 1), (lower, 1), (-1, higher))


def test_a_verdict_needs_both_the_interval_and_the_test() -> None:
    assert judge(-0.03, -0.01, 0.01, real=True) is Verdict.WORSE
    assert judge(-0.03, -0.01, 0.01, real=False) is Verdict.INCONCLUSIVE
    assert judge(0.01, 0.03, 0.01, real=True) is Verdict.BETTER
    assert judge(-0.009, 0.03, 0.01, real=False) is Verdict.NO_WORSE
    assert judge(-0.011, 0.03, 0.01, real=False) is Verdict.INCONCLUSIVE
    # Real and within the margin: the loss is said.
    assert judge(-0.005, -0.001, 0.01, real=True) is Verdict.WORSE


Counts = NDArray[np.int64]


def simulated(n: int, discordance: float, delta: float, seed: int, runs: int = RUNS) -> tuple[Counts, Counts]:
    """Questions lost and won in each of some runs of independent questions."""
    shares = [(discordance - delta) / 2, (discordance + delta) / 2, 1 - discordance]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=runs)
    return drawn[:, 0], drawn[:, 1]


def verdicts(n: int, lost: Counts, won: Counts, margin: float = 0.01) -> dict[Verdict, float]:
    """Shares of the verdicts over all runs, by the rule of a table with a single cell."""
    low, high = score_interval(n, lost, won, Z)
    real = 2 * binom.cdf(np.minimum(lost, won), lost + won, 0.5) < 0.05
    found = [judge(*ends, margin, real=bool(yes)) for *ends, yes in zip(low, high, real, strict=True)]
    return {verdict: found.count(verdict) / len(found) for verdict in Verdict}


@pytest.mark.parametrize(("n", "discordance"), [(285, 0.1), (2_400, 0.002), (2_400, 0.05), (14_042, 0.04)])
def test_of_equal_cells_at_most_one_in_twenty_is_called_different(n: int, discordance: float) -> None:
    found = verdicts(n, *simulated(n, discordance, 0.0, seed=1))
    assert found[Verdict.WORSE] + found[Verdict.BETTER] <= above(0.05)


@pytest.mark.parametrize(("n", "discordance"), [(285, 0.1), (2_400, 0.015), (2_400, 0.05), (14_042, 0.04)])
def test_of_cells_that_lose_the_margin_one_in_forty_is_called_no_worse(n: int, discordance: float) -> None:
    found = verdicts(n, *simulated(n, discordance, -0.01, seed=2))
    assert found[Verdict.NO_WORSE] <= above(0.025)
    assert found[Verdict.BETTER] <= above(0.025)


@pytest.mark.parametrize("delta", [0.0, -0.01, -0.03])
@pytest.mark.parametrize(("n", "discordance"), [(285, 0.1), (2_400, 0.03), (14_042, 0.04)])
def test_nineteen_of_twenty_intervals_contain_the_difference(n: int, discordance: float, delta: float) -> None:
    low, high = score_interval(n, *simulated(n, discordance, delta, seed=3), Z)
    covered = float(np.mean((low <= delta) & (delta <= high)))
    assert below(0.95) <= covered <= above(0.97)


@pytest.mark.parametrize(
    ("n", "discordance"), [(285, 0.2), (2_400, 0.002), (2_400, 0.05), (14_042, 0.001), (14_042, 0.15)]
)
def test_a_difference_of_the_detectable_size_is_detected_four_times_in_five(n: int, discordance: float) -> None:
    least = detectable_difference(n, discordance)
    # As many flips as the difference needs, where the observed ones are fewer.
    flipping = max(discordance, least)
    found = verdicts(n, *simulated(n, flipping, -least, seed=4))
    assert below(0.8) <= found[Verdict.WORSE] <= 0.92
    smaller = verdicts(n, *simulated(n, max(discordance, least / 2), -least / 2, seed=5))
    assert smaller[Verdict.WORSE] < 0.6


def test_the_detectable_difference_solves_connor_s_formula() -> None:
    n, discordance = 14_042, 0.04
    d = detectable_difference(n, discordance, power=0.9) - 1 / n
    needed = (Z * np.sqrt(discordance) + norm.ppf(0.9) * np.sqrt(discordance - d**2)) ** 2 / d**2
    assert needed == pytest.approx(n)
    assert detectable_difference(n, discordance, design_effect=4) == pytest.approx(
        detectable_difference(n // 4, discordance), rel=1e-3
    )


def test_without_a_flip_something_is_detectable_all_the_same() -> None:
    # Six answers that flip one way are significant: 2 ÷ 2⁶ = 0.03; 8.8 on average are six or more four times in five.
    least = detectable_difference(2_400, 0.0)
    assert 7 < 2_400 * least < 10
    assert 0.8 <= 1 - binom.cdf(5, 2_400, least) < 0.92
    assert detectable_difference(3, 0.0) == 1


def test_of_independent_questions_the_detectable_difference_is_that_of_two_samples() -> None:
    # 2.8016 × √(2 × 0.25 ÷ 1000).
    assert detectable_between(0.5, 0.5, (1000, 1000)) == pytest.approx(2.80158 * np.sqrt(0.0005), rel=1e-5)


@pytest.mark.parametrize(("delta", "limit"), [(-0.001, -0.01), (-0.02, -0.01), (-0.004, 0.0), (0.0, -0.005)])
def test_so_many_questions_settle_it_four_times_in_five(delta: float, limit: float) -> None:
    discordance = 0.04
    n = questions_needed(delta, discordance, limit)
    assert n
    low, high = score_interval(n, *simulated(n, discordance, delta, seed=6), Z)
    settled = float(np.mean((low > limit) | (high < limit)))
    assert below(0.8) <= settled <= above(0.84)


def test_a_difference_at_the_limit_is_settled_by_no_number() -> None:
    assert questions_needed(-0.01, 0.04, -0.01) is None
    # Without a flip 380 questions exclude a loss of 1 point: z² ÷ n, nearly.
    assert questions_needed(0.0, 0.0, -0.01) == pytest.approx(Z**2 / 0.01, rel=0.02)


def clustered(
    questions: int, subjects: int, spread: float, delta: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Differences [runs, questions] of −1, 0 and 1, whose mean varies from subject to subject by `spread`."""
    random = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(subjects), questions // subjects)
    means = delta + spread * random.standard_normal((RUNS, subjects))
    losing = np.clip(0.1 - means / 2, 0, 1)[:, numbers]
    winning = np.clip(0.1 + means / 2, 0, 1)[:, numbers]
    drawn = random.random((RUNS, len(numbers)))
    return (drawn > 1 - winning).astype(float) - (drawn < losing), numbers


@pytest.mark.parametrize(("subjects", "spread"), [(57, 0.0), (57, 0.08), (20, 0.08)])
def test_intervals_of_clustered_questions_cover_and_equal_cells_stay_equal(subjects: int, spread: float) -> None:
    differences, numbers = clustered(2_280, subjects, spread, 0.0, seed=7)
    n = differences.shape[1]
    lost, won = (differences < 0).sum(1), (differences > 0).sum(1)
    effects = np.array([design_effect(one, numbers) for one in differences])
    wider = student.ppf(0.975, subjects - 1) * np.sqrt(effects)
    low, high = score_interval(n, lost, won, np.where(effects > 1, wider, Z))
    covered = float(np.mean((low <= 0) & (high >= 0)))
    assert covered >= below(0.95)
    assert covered <= 0.98
    if spread:
        naive_low, naive_high = score_interval(n, lost, won, Z)
        assert np.mean((naive_low <= 0) & (naive_high >= 0)) < 0.9
        assert float(effects.mean()) > 1.5


def test_the_design_effect_by_hand() -> None:
    # Two subjects of two: sums of the residuals 1 and −1, so 2 ÷ 1 × (1 + 1) ÷ (4 × ½²) = 4.
    assert design_effect(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])) == pytest.approx(4)
    assert design_effect(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1])) == pytest.approx(0)
    assert design_effect(np.zeros(4), np.array([0, 0, 1, 1])) == 1
    assert design_effect(np.array([1.0, 0.0]), np.array([0, 0])) == 1


def by_subject(losing: list[int], questions: int = 50) -> Flips:
    """Of subjects in each of which so many answers are lost, and one is won."""
    first: dict[tuple[str, int], bool] = {}
    second: dict[tuple[str, int], bool] = {}
    for number, lost in enumerate(losing):
        right = np.ones(questions, dtype=bool)
        right[-1] = False
        after = right.copy()
        after[:lost] = False
        after[-1] = True
        first |= answers(right, f"s{number}")
        second |= answers(after, f"s{number}")
    flips = answer_flips(first, second)
    assert flips
    return flips


def test_losses_in_a_few_subjects_are_less_certain_than_the_same_ones_everywhere() -> None:
    spread, gathered = by_subject([3] * 12), by_subject([18, 18, *[0] * 10])
    assert (spread.right_to_wrong, spread.wrong_to_right) == (gathered.right_to_wrong, gathered.wrong_to_right)
    assert spread.design_effect < 1 < gathered.design_effect
    assert paired_p_value(spread) == mcnemar_p_value(spread) == mcnemar_p_value(gathered) < 0.001
    # |12 − 36| ÷ √(48 × effect) against Student's distribution of 11 degrees.
    statistic = 24 / np.sqrt(48 * gathered.design_effect)
    assert paired_p_value(gathered) == pytest.approx(2 * student.sf(statistic, 11))
    assert difference_interval(spread)[1] < 0 < difference_interval(gathered)[1]


def test_too_few_subjects_are_no_clusters() -> None:
    assert by_subject([18, 18, *[0] * 7]).design_effect == 1
    assert by_subject([18, 18, *[0] * 7]).subjects == 0


def test_the_intervals_of_a_run_hold_together() -> None:
    """With four cells compared each has 1 − 0.05 ÷ 4."""
    labels = ("int4", "nf4", "awq", "gptq")
    rows = [row for label in ("fp16", *labels) for row in measured(label, label, 5, {}, 600, 1000)]
    right = {"fp16": flipped(600, 1000, 0, 0)} | {label: flipped(600, 1000, 30, 10) for label in labels}
    found = compare(made_up_run(rows, answers=right), [("fp16", label) for label in labels])
    alone = compare(made_up_run(rows, answers=right), [("fp16", "int4")])["fp16", "int4"]
    for one in found.values():
        assert one.confidence == pytest.approx(0.9875)
        assert one.interval == pytest.approx(difference_interval(one.flips, 0.9875))
        assert one.interval[0] < alone.interval[0]
        assert one.detectable > alone.detectable
