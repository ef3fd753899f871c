from __future__ import annotations

from typing import Any

import pytest

from qbench.analysis.effects import Accuracy, SpeedRatio
from qbench.analysis.formulas import Flips
from qbench.analysis.paired import Comparison
from qbench.show.phrases import p_words, ratio_words
from qbench.show.verdicts import difference_words, settled_by


def accuracy(lost: int, won: int, p_holm: float, *, n: int = 14_042, paired: int = 14_042, **fields: Any) -> Accuracy:
    floor, margin = fields.pop("below_noise_floor", None), fields.pop("margin", 0.01)
    found = Comparison(Flips(paired, lost, won), p_holm / 2, p_holm, floor, margin=margin)
    return Accuracy(correct=n // 2, n=n, questions="MMLU", difference=found, **fields)


# Of 14,042 questions 134 are lost and 50 won: (50 − 134) ÷ 14042 = −0.6 points; the normal approximation of the
# interval is ± 1.96 × √(184 − 84² ÷ 14042) ÷ 14042 = ± 0.19 points.
@pytest.mark.parametrize(
    ("found", "words"),
    [
        (accuracy(134, 50, 0.02), "worse by 0.6 points [0.4, 0.8], p = 0.02"),
        (accuracy(50, 134, 0.02), "better by 0.6 points [0.4, 0.8], p = 0.02"),
        (accuracy(134, 50, 0.00002), "worse by 0.6 points [0.4, 0.8], p < 0.001"),
        (accuracy(134, 50, 0.02, below_noise_floor=False), "worse by 0.6 points [0.4, 0.8], p = 0.02"),
        # By the interval alone it would be; without the test, and below the floor, it is not.
        (accuracy(134, 50, 0.05), "no worse than 1 point: −0.6 points [−0.8, −0.4]"),
        (
            accuracy(134, 50, 0.02, below_noise_floor=True),
            "no worse than 1 point: −0.6 points [−0.8, −0.4]; below the noise floor",
        ),
        # (9 − 1) ÷ 14042 = 0.057 points ± 0.044 of the normal approximation: one decimal would say 0.0 of an end.
        (accuracy(1, 9, 0.02), "better by 0.06 points [0.02, 0.12], p = 0.02"),
        (accuracy(134, 50, 0.02, n=15_000), "worse by 0.6 points [0.4, 0.8], p = 0.02 on 14,042 common questions"),
        # 10 lost of 400, 6 won: −1 ± 1.96 × √(16 − 16 ÷ 400) ÷ 4 = −1 ± 1.96 points.
        (
            accuracy(10, 6, 0.7, n=400, paired=400, partial=True),
            "inconclusive: a loss of up to 3.3 points cannot be excluded, partial",
        ),
        (accuracy(10, 6, 0.7, n=400, paired=400, margin=0.05), "no worse than 5 points: −1.0 points [−3.2, +1.1]"),
        (accuracy(0, 0, 1, n=100, paired=100), "inconclusive: a loss of up to 3.7 points cannot be excluded"),
        (Accuracy(correct=1, n=2, questions="MMLU"), ""),
        (None, ""),
    ],
)
def test_a_difference_in_accuracy_in_words(found: Accuracy | None, words: str) -> None:
    assert difference_words(found) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.02, "p = 0.02"), (0.0049, "p = 0.005"), (0.0249, "p = 0.025"), (0.0009, "p < 0.001")]
)
def test_a_p_value_in_words(value: float, words: str) -> None:
    assert p_words(value) == words


def test_a_speed_up_in_words() -> None:
    assert ratio_words(SpeedRatio(2.3, 2.1, 2.4)) == "2.30× [2.10, 2.40]"
    assert ratio_words(SpeedRatio(0.9, None, None)) == "0.90×"
    assert ratio_words(SpeedRatio(0.9, None, None), " (a single trial)") == "0.90× (a single trial)"
    assert ratio_words(None) == ""


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (6_643, "about 6,700 questions would settle it"),
        (12, "about 12 questions would settle it"),
        (101, "about 110 questions would settle it"),
        (None, "no number of questions would settle it while the figures stay as they are"),
    ],
)
def test_what_would_settle_it_is_rounded_up_to_two_digits(needed: int | None, words: str) -> None:
    assert settled_by(needed, "questions") == words


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (SpeedRatio(1.2, 1.1, 1.3), "better"),
        (SpeedRatio(0.8, 0.7, 0.9), "worse"),
        (SpeedRatio(0.99, 0.95, 1.03), "no_worse"),
        (SpeedRatio(0.99, 0.85, 1.13), "inconclusive"),
        # One trial shows no more than that trials may be 10 % apart.
        (SpeedRatio(1.05, None, None), "inconclusive"),
        (SpeedRatio(0.7, None, None), "worse"),
    ],
)
def test_the_verdict_on_a_speed(ratio: SpeedRatio, verdict: str) -> None:
    assert ratio.verdict == verdict
