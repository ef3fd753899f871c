from __future__ import annotations

from typing import Any

import pytest

from qbench.analysis.effects import Accuracy, SpeedRatio
from qbench.analysis.formulas import Flips
from qbench.analysis.paired import Comparison
from qbench.show.phrases import difference_words, p_words, ratio_words


def accuracy(lost: int, won: int, p_holm: float, *, n: int = 14_042, paired: int = 14_042, **fields: Any) -> Accuracy:
    floor = fields.pop("below_noise_floor", None)
    found = Comparison(Flips(paired, lost, won), p_holm / 2, p_holm, floor)
    return Accuracy(correct=n // 2, n=n, questions="MMLU", difference=found, **fields)


# Of 14,042 questions 134 are lost and 50 won: (50 − 134) ÷ 14042 = −0.6 points; the normal approximation of the
# interval is ± 1.96 × √(184 − 84² ÷ 14042) ÷ 14042 = ± 0.19 points.
@pytest.mark.parametrize(
    ("found", "words"),
    [
        (accuracy(134, 50, 0.02), "−0.6 points [−0.8, −0.4], p = 0.02"),
        (accuracy(134, 50, 0.02, below_noise_floor=False), "−0.6 points [−0.8, −0.4], p = 0.02"),
        (accuracy(134, 50, 0.02, below_noise_floor=True), "below the noise floor"),
        (accuracy(134, 50, 0.05), "within noise, p = 0.05"),
        (accuracy(134, 50, 0.00002), "−0.6 points [−0.8, −0.4], p < 0.001"),
        # (9 − 1) ÷ 14042 = 0.057 points ± 0.044 of the normal approximation: the lower end is 0.0 by one decimal.
        (accuracy(1, 9, 0.02), "+0.06 points [+0.01, +0.11], p = 0.02"),
        (accuracy(134, 50, 0.02, n=15_000), "−0.6 points [−0.8, −0.4], p = 0.02 on 14,042 common questions"),
        (accuracy(134, 50, 0.7, partial=True), "within noise, p = 0.7, partial"),
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
