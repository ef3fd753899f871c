from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from qbench.analysis.effects import Accuracy, accuracy_difference, accuracy_of, newcombe_interval, speed_ratio
from qbench.analysis.formulas import Flips
from tests.support.made_up_run import answers, flipped, made_up_run, measured, subject


def accuracy(correct: int, n: int, questions: str, right: pd.Series[bool] | None = None) -> Accuracy:
    return Accuracy(correct=correct, n=n, questions=questions, right=right)


def test_newcombes_interval_is_that_of_his_paper() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10.
    low, high = newcombe_interval(accuracy(48, 80, "MMLU"), accuracy(56, 70, "MMLU"))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    # The same, (h): 10/10 - 0/10.
    low, high = newcombe_interval(accuracy(0, 10, "MMLU"), accuracy(10, 10, "MMLU"))
    assert (low, high) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_answers_are_paired_where_both_are_there() -> None:
    first, second = flipped(600, 1000, 0, 0), flipped(600, 1000, 30, 10)
    found = accuracy_difference(accuracy(600, 1000, "MMLU", first), accuracy(580, 1000, "MMLU", second))
    assert found
    assert found.flips == Flips(1000, 30, 10)
    assert found.delta == pytest.approx(-0.02)
    # The normal approximation, 1.96 * sqrt(40 - 20**2 / 1000) / 1000 either way; the score interval is not symmetric.
    assert (found.low, found.high) == pytest.approx((-0.0323, -0.0077), abs=1.5e-3)


def test_without_answers_the_interval_is_wider_and_centred_on_the_accuracies() -> None:
    found = accuracy_difference(accuracy(600, 1000, "MMLU"), accuracy(580, 1000, "MMLU", answers([True])))
    assert found
    assert found.flips is None
    assert found.delta == pytest.approx(-0.02)
    assert found.low < -0.06 < 0.02 < found.high
    assert found.p_value == pytest.approx(0.39, abs=0.02)


def test_other_questions_are_not_compared() -> None:
    assert accuracy_difference(accuracy(6, 10, "MMLU"), accuracy(6, 10, "others")) is None
    law, art = accuracy(1, 1, "MMLU", answers([True], "law")), accuracy(1, 1, "MMLU", answers([True], "art"))
    assert accuracy_difference(law, art) is None


def test_a_cell_has_answered_the_set_that_its_run_names() -> None:
    rows = [subject("int4", None, "law", 6, 10), subject("int4", None, "art", 3, 10)]
    found = accuracy_of(made_up_run(rows, mmlu={"data": "demo"}), "int4")
    assert found
    assert (found.correct, found.n, found.value) == (9, 20, 0.45)
    assert found.questions != getattr(accuracy_of(made_up_run(rows, mmlu={"data": "/data"}), "int4"), "questions", "")


def test_a_partial_result_is_none_unless_asked_for() -> None:
    run = made_up_run(measured("int4", "int4", 5, {}, 6, 10, partial=True))
    assert accuracy_of(run, "int4") is None
    assert accuracy_of(run, "int4", allow_partial=True) is not None
    assert accuracy_of(run, "nf4", allow_partial=True) is None


def test_a_ratio_has_welchs_interval_at_the_confidence_asked_for() -> None:
    first, second = [100.0, 102.0, 101.0], [90.0, 95.0, 93.0]
    logs, others = np.log(second), np.log(first)
    variances = logs.var(ddof=1) / 3, others.var(ddof=1) / 3
    freedom = sum(variances) ** 2 / sum(v**2 / 2 for v in variances)
    half = student.ppf(0.995, freedom) * math.sqrt(sum(variances))
    found = speed_ratio(first, second, 0.99)
    middle = logs.mean() - others.mean()
    assert (found.low, found.high) == pytest.approx((math.exp(middle - half), math.exp(middle + half)))


def test_single_trials_differ_from_a_tenth_on() -> None:
    assert speed_ratio([100], [95]).bounds == pytest.approx((0.95 / 1.1, 0.95 * 1.1))
    assert not speed_ratio([100], [95]).differs
    assert not speed_ratio([100], [109]).differs
    assert speed_ratio([100], [111]).differs
    assert speed_ratio([100, 101], [80]).differs
