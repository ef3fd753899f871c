from __future__ import annotations

import pytest

from qbench.analysis.formulas import Flips
from qbench.analysis.paired import compare, noise_floor, tied
from qbench.records.rows import NoiseRow
from tests.support.made_up_run import answers, cell, flipped, made_up_run, noise


def test_the_reference_is_the_first_cell_that_is_not_quantized() -> None:
    assert made_up_run([cell("int4"), cell("plain", "fp16"), cell("fp16")]).reference == "plain"
    assert made_up_run([cell("int4")]).reference is None
    assert made_up_run([]).reference is None


def test_questions_are_joined_by_subject_and_number_in_any_order() -> None:
    law, art = answers([True, True, False], "law"), answers([True, False], "art")
    # The same questions the other way round: law 0 is lost, art 1 is won.
    other = answers([True, True], "art") | answers([False, True, False], "law")
    backwards = dict(reversed(other.items()))
    run = made_up_run([], answers={"fp16": law | art, "int4": backwards})
    assert compare(run, [("fp16", "int4")])["fp16", "int4"].flips == Flips(5, 1, 1)


def test_only_common_questions_are_compared() -> None:
    some = dict(list(flipped(50, 100, 7, 0).items())[3:40])
    run = made_up_run([], answers={"fp16": flipped(50, 100, 0, 0), "int4": some})
    assert compare(run, [("fp16", "int4")])["fp16", "int4"].flips == Flips(37, 4, 0)


def test_cells_without_common_questions_or_answers_are_not_compared() -> None:
    run = made_up_run([], answers={"fp16": answers([True], "law"), "int4": answers([True], "art")})
    assert compare(run, [("fp16", "int4"), ("fp16", "nf4"), ("nf4", "int4")]) == {}


def test_p_values_are_corrected_over_the_pairs_compared() -> None:
    # 1 against 9 flips: p = 0.0215; 0 against 5: 0.0625; none: 1.
    cells = {"a": flipped(50, 100, 1, 9), "b": flipped(50, 100, 5, 0), "c": flipped(50, 100, 0, 0)}
    run = made_up_run([], answers={"fp16": flipped(50, 100, 0, 0), **cells})
    three = compare(run, [("fp16", label) for label in cells])
    assert [found.p_value for found in three.values()] == pytest.approx([0.021484375, 0.0625, 1])
    assert [found.p_holm for found in three.values()] == pytest.approx([3 * 0.021484375, 0.125, 1])
    assert not three["fp16", "a"].differs
    assert compare(run, [("fp16", "a")])["fp16", "a"].differs


@pytest.mark.parametrize(
    ("floor", "below"),
    [
        # The cell loses 30 and wins 10 of 1000: 4 % flip, −2 points.
        ([], None),
        ([noise("fp16", 1000, 0, 0)], False),
        ([noise("fp16", 1000, 5, 5)], False),
        ([noise("fp16", 1000, 20, 20)], True),
        ([noise("fp16", 100, 2, 2)], True),
        ([noise("fp16", 1000, 0, 20)], True),
        ([noise("another", 1000, 20, 20)], None),
    ],
)
def test_a_difference_that_numerics_alone_can_make_is_below_the_noise_floor(
    floor: list[NoiseRow], below: bool | None
) -> None:
    cells = {"fp16": flipped(600, 1000, 0, 0), "int4": flipped(600, 1000, 30, 10)}
    run = made_up_run([cell("fp16"), cell("int4"), *floor], answers=cells)
    found = compare(run, [("fp16", "int4")])["fp16", "int4"]
    assert found.p_holm < 0.05
    assert found.below_noise_floor is below
    assert found.differs == (not below)


def test_the_noise_floor_is_that_of_the_reference() -> None:
    run = made_up_run([cell("fp16"), noise("fp16", 100, 1, 2), noise("fp16", 100, 3, 4)])
    assert noise_floor(run) == Flips(100, 3, 4)
    assert noise_floor(made_up_run([cell("int4")])) is None


def test_cells_whose_answers_differ_little_are_tied() -> None:
    run = made_up_run(
        [],
        answers={
            "fp16": flipped(600, 1000, 0, 0),
            "int4": flipped(600, 1000, 6, 4),
            "nf4": flipped(600, 1000, 60, 4),
        },
    )
    assert tied(run, ["fp16", "int4", "nf4"]) == {frozenset(("fp16", "int4"))}
    assert tied(run, ["nf4", "fp16"]) == set()
