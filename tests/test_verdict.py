from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from qbench.show.phrases import accuracy_words, speedup_words, verdict


def row(**changes: Any) -> dict[str, Any]:
    compared = {
        "mmlu_n": 14_042, "mmlu_paired_n": 14_042, "mmlu_partial": False,
        "mmlu_delta": -0.006, "mmlu_delta_low": -0.011, "mmlu_delta_high": -0.001,
        "mmlu_p_holm": 0.02, "mmlu_below_noise_floor": False,
        "speedup_b1": 2.3, "speedup_b1_low": 2.1, "speedup_b1_high": 2.4,
        "speedup_b8": pd.NA, "speedup_b8_low": pd.NA, "speedup_b8_high": pd.NA,
        "speedup_b32": 0.9, "speedup_b32_low": pd.NA, "speedup_b32_high": pd.NA,
    }  # fmt: skip
    return compared | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "−0.6 points [−1.1, −0.1], p = 0.02"),
        ({"mmlu_below_noise_floor": pd.NA}, "−0.6 points [−1.1, −0.1], p = 0.02"),
        ({"mmlu_below_noise_floor": True}, "below the noise floor"),
        ({"mmlu_p_holm": 0.05}, "within noise, p = 0.05"),
        ({"mmlu_p_holm": 0.00002}, "−0.6 points [−1.1, −0.1], p < 0.001"),
        ({"mmlu_p_holm": 0.0049}, "−0.6 points [−1.1, −0.1], p = 0.005"),
        ({"mmlu_p_holm": 0.0249}, "−0.6 points [−1.1, −0.1], p = 0.025"),
        (
            {"mmlu_delta": 0.004, "mmlu_delta_low": 0.0, "mmlu_delta_high": 0.0081},
            "+0.40 points [0.00, +0.81], p = 0.02",
        ),
        (
            {"mmlu_delta": -0.0004, "mmlu_delta_low": -0.0007, "mmlu_delta_high": -0.0001},
            "−0.04 points [−0.07, −0.01], p = 0.02",
        ),
        ({"mmlu_paired_n": 1200}, "−0.6 points [−1.1, −0.1], p = 0.02 on 1,200 common questions"),
        ({"mmlu_p_holm": 0.7, "mmlu_partial": True}, "within noise, p = 0.7, partial"),
        ({"mmlu_delta": pd.NA}, ""),
    ],
)
def test_accuracy_in_words(changes: dict[str, Any], words: str) -> None:
    assert accuracy_words(row(**changes)) == words


@pytest.mark.parametrize(("size", "words"), [(1, "2.30× [2.10, 2.40]"), (8, ""), (32, "0.90×")])
def test_a_speed_up_in_words(size: int, words: str) -> None:
    assert speedup_words(row(), size) == words


def test_a_verdict_is_all_that_is_known() -> None:
    assert verdict(row(mmlu_p_holm=0.5), [1, 8, 32]) == (
        "2.30× [2.10, 2.40] at batch 1; 0.90× at batch 32; accuracy within noise, p = 0.5"
    )
    assert verdict(row(mmlu_delta=pd.NA), [8]) == ""
    assert verdict(row(), []) == "accuracy −0.6 points [−1.1, −0.1], p = 0.02"
