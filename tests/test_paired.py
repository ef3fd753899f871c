from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from qbench.analysis.formulas import Flips, count_flips
from qbench.analysis.paired import holm, mcnemar_p_value

counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 2000)).map(
    lambda c: Flips(c[0] + c[1] + c[2], c[0], c[1])
)


def bools(text: str) -> NDArray[np.bool_]:
    return np.array([character == "+" for character in text])


def test_flips_are_counted_in_both_directions() -> None:
    flips = count_flips(bools("++++--+-"), bools("+--++-++"))
    # The second and third question are lost; the fifth and the last are won.
    assert flips == Flips(n=8, right_to_wrong=2, wrong_to_right=2)
    assert flips.flipped == 4
    assert flips.delta == 0
    assert Flips(n=200, right_to_wrong=5, wrong_to_right=2).delta == -0.015


@pytest.mark.parametrize(("first", "second"), [("", ""), ("+-", "+")])
def test_pairs_need_the_same_questions(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="same questions"):
        count_flips(bools(first), bools(second))


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [
        (0, 0, 1.0),
        # 2 ÷ 2⁵
        (5, 0, 0.0625),
        # 2 (1 + 10) ÷ 2¹⁰
        (1, 9, 0.021484375),
        # 2 (1 + 8 + 28 + 56) ÷ 2⁸
        (3, 5, 0.7265625),
        (6, 6, 1.0),
    ],
)
def test_mcnemar_by_hand(lost: int, won: int, p_value: float) -> None:
    assert mcnemar_p_value(Flips(1000, lost, won)) == pytest.approx(p_value, rel=1e-12)


@given(counts)
def test_mcnemar_is_twice_the_smaller_tail_and_the_same_both_ways(flips: Flips) -> None:
    p_value = mcnemar_p_value(flips)
    tail = 2 * float(binom.cdf(min(flips.right_to_wrong, flips.wrong_to_right), flips.flipped, 0.5))
    assert p_value == pytest.approx(min(1.0, tail), rel=1e-9)
    assert p_value == pytest.approx(mcnemar_p_value(Flips(flips.n, flips.wrong_to_right, flips.right_to_wrong)))


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 1 × 0.04, which may not be below its predecessor.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.4, 0.6], [0.8, 0.8]),
        ([0.9, 0.7, 0.02], [1.0, 1.0, 0.06]),
    ],
)
def test_holm_by_hand(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_every_subset(p_values: list[float]) -> None:
    """Holm's value is the largest Bonferroni value over all subsets of the family that contain the test."""
    corrected = holm(p_values)
    for i, mine in enumerate(corrected):
        others = [j for j in range(len(p_values)) if j != i]
        subsets = [(i, *rest) for size in range(len(p_values)) for rest in combinations(others, size)]
        assert mine == pytest.approx(max(min(1, len(s) * min(p_values[j] for j in s)) for s in subsets))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_holm_keeps_the_order_and_lowers_nothing(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, corrected, strict=True))
    for (p, a), (q, b) in combinations(zip(p_values, corrected, strict=True), 2):
        assert (p - q) * (a - b) >= 0


def test_import_leaves_scipy_and_torch_alone() -> None:
    code = (
        "import sys, qbench.analysis.paired, qbench.show.verdicts; "
        "sys.exit(bool({'scipy', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
