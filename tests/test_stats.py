from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from qbench.analysis.figures import CHANCE_LEVEL
from qbench.analysis.formulas import (
    decode_tokens_per_s,
    mean_of_windows,
    pareto_front,
    prefill_tokens_per_s,
    quantile,
    speedup,
    steady_state,
    wilson_interval,
)
from qbench.analysis.summary import batch_sizes, summarize
from tests.support.made_up_run import (
    FIVE_ANSWERS,
    cell,
    five_cells,
    flipped,
    made_up_run,
    measured,
    noise,
    subject,
    text,
    trial,
    trials,
    window,
)
from tests.support.summaries import frame


def test_prefill_speed_counts_every_prompt_of_the_batch() -> None:
    # 8 prompts of 1920 tokens in 2 s.
    assert prefill_tokens_per_s(8, 1920, 2.0) == 7680


def test_decode_speed_is_that_of_the_steps_after_the_first_token() -> None:
    # 4 sequences, 3 steps, 12 tokens in 0.5 s; the mean of the steps' speeds would be 25.3.
    assert decode_tokens_per_s(4, [0.125, 0.125, 0.25]) == 24


@pytest.mark.parametrize("step_s", [[], [0.0]])
def test_no_decode_time_is_no_speed(step_s: list[float]) -> None:
    with pytest.raises(ValueError, match="decode steps"):
        decode_tokens_per_s(1, step_s)


def test_prefill_needs_a_time() -> None:
    with pytest.raises(ValueError, match="positive"):
        prefill_tokens_per_s(1, 10, 0.0)


@pytest.mark.parametrize(
    ("q", "expected"),
    # Sorted 10 20 30 50; positions 0, 1.5, 3 × 0.95 = 2.85, 3.
    [(0, 10), (0.5, 25), (0.95, 47), (1, 50)],
)
def test_quantile_interpolates_between_neighbours(q: float, expected: float) -> None:
    assert quantile([50, 10, 30, 20], q) == pytest.approx(expected)


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # z² = 3.8415. Centre 0.5; half-width 1.96 ÷ 1.038415 × √(0.0025 + 0.000096) = 0.09617.
        (50, 100, 0.40383, 0.59617),
        # p = 0: from 0 to z² ÷ (n + z²) = 3.8415 ÷ 13.8415.
        (0, 10, 0, 0.27753),
        (10, 10, 0.72247, 1),
    ],
)
def test_wilson_interval_by_hand(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-5)


def test_wilson_interval_is_wider_with_more_confidence() -> None:
    low, high = wilson_interval(50, 100)
    lower, higher = wilson_interval(50, 100, confidence=0.99)
    assert lower < low < high < higher


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (1, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"interval|right"):
        wilson_interval(correct, n)


def test_speed_up_by_hand() -> None:
    # Logs 1, 1.1, 1.2 and 0, 0.1, 0.2: s² = 0.01 each, √(2 × 0.01/3) = 0.0816497, t of 4 degrees = 2.776445.
    ratio, low, high = speedup([math.e, math.exp(1.1), math.exp(1.2)], [1, math.exp(0.1), math.exp(0.2)])
    assert low is not None
    assert high is not None
    assert [math.log(value) for value in (ratio, low, high)] == pytest.approx([1, 1 - 0.226696, 1 + 0.226696], abs=1e-6)


def test_speed_up_of_unequal_variances_has_the_degrees_of_freedom_of_welch_and_satterthwaite() -> None:
    # Logs 0, 0.4 (s²/n = 0.04) and 0, 0.1, 0.2 (s²/n = 0.00333): 0.0433² ÷ (0.04²/1 + 0.00333²/2) = 1.169 degrees.
    _, low, high = speedup([1, math.exp(0.4)], [1, math.exp(0.1), math.exp(0.2)])
    squares = 0.04, 0.01 / 3
    half = student.ppf(0.975, sum(squares) ** 2 / (squares[0] ** 2 + squares[1] ** 2 / 2)) * math.sqrt(sum(squares))
    assert (low, high) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)))


@pytest.mark.parametrize(("speeds", "reference"), [([3.0], [1.0, 1.0]), ([3.0, 3.0], [1.0]), ([3.0], [1.0])])
def test_one_trial_gives_a_speed_up_without_an_interval(speeds: list[float], reference: list[float]) -> None:
    assert speedup(speeds, reference) == (pytest.approx(3), None, None)


def test_trials_that_do_not_vary_give_a_point() -> None:
    assert speedup([6.0, 6.0], [2.0, 2.0, 2.0]) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(("speeds", "reference"), [([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0, 2.0])])
def test_no_speed_is_no_speed_up(speeds: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match="positive speeds"):
        speedup(speeds, reference)


# Spread over more than scipy's limit for values too alike to have a variance.
speeds = st.lists(st.integers(10, 10_000).map(float), min_size=2, max_size=6, unique=True)


@given(speeds, speeds)
def test_the_interval_of_a_speed_up_contains_it_and_turns_with_it(a: list[float], b: list[float]) -> None:
    ratio, low, high = speedup(a, b)
    assert low is not None
    assert high is not None
    assert low <= ratio <= high
    assert speedup(b, a) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_chance_is_one_in_four() -> None:
    assert CHANCE_LEVEL == 0.25


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(5.0, 0.6)], [0]),
        # The second costs more and gives less.
        ([(5.0, 0.6), (6.0, 0.5)], [0]),
        ([(16.0, 0.66), (5.0, 0.6), (6.0, 0.59)], [1, 0]),
        # As dear, but better; as good, but dearer.
        ([(5.0, 0.6), (5.0, 0.7)], [1]),
        ([(6.0, 0.6), (5.0, 0.6)], [1]),
        # Equal points stand or fall together.
        ([(5.0, 0.6), (5.0, 0.6), (4.0, 0.5)], [2, 0, 1]),
        ([(5.0, 0.6), (5.0, 0.6), (4.0, 0.7)], [2]),
    ],
)
def test_pareto_front_by_hand(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


# Few distinct values, so that ties and duplicates are common.
@given(st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=12))
def test_pareto_front_is_what_no_point_dominates(points: list[tuple[float, float]]) -> None:
    undominated = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    front = pareto_front(points)
    assert sorted(front) == undominated
    assert [points[i] for i in front] == sorted(points[i] for i in front)


def test_summary_is_one_row_a_cell_in_their_order() -> None:
    summary = frame(made_up_run(five_cells()))
    assert list(summary["label"]) == ["fp16", "int4", "nf4", "awq", "gptq"]
    assert list(summary.columns) == [
        "run", "model", "backend", "label", "status", "error", "peak_memory_bytes",
        "decode_tokens_per_s_b1", "decode_tokens_per_s_b8", "decode_tokens_per_s_b32",
        "joules_per_token_b1", "joules_per_token_b8", "joules_per_token_b32",
        "status_b1", "status_b8", "status_b32", "validity_b1", "validity_b8", "validity_b32",
        "speedup_b1", "speedup_b1_low", "speedup_b1_high", "speedup_b8", "speedup_b8_low", "speedup_b8_high",
        "speedup_b32", "speedup_b32_low", "speedup_b32_high",
        "sustained_tokens_per_s", "sustained_peak_tokens_per_s", "sustained_validity",
        "load_output_tokens_per_s", "goodput_per_s", "goodput_level", "slo_rate_per_s", "load_validity",
        "mmlu", "mmlu_ci_low", "mmlu_ci_high", "mmlu_n", "mmlu_partial",
        "mmlu_paired_n", "mmlu_delta", "mmlu_delta_low", "mmlu_delta_high", "mmlu_p_value", "mmlu_p_holm",
        "mmlu_right_to_wrong", "mmlu_wrong_to_right", "mmlu_below_noise_floor",
        "mmlu_verdict", "mmlu_margin", "mmlu_detectable", "mmlu_design_effect",
        "perplexity", "kl_mean",
    ]  # fmt: skip


def test_failed_cell_is_a_row_with_its_reason_and_no_figure() -> None:
    awq = frame(made_up_run(five_cells())).set_index("label").loc["awq"]
    assert awq["status"] == "unavailable"
    assert awq["error"] == "no module named gptqmodel"
    assert awq[["peak_memory_bytes", "decode_tokens_per_s_b1", "status_b1", "mmlu", "mmlu_n"]].isna().all()


def test_speed_is_the_median_over_the_ok_trials() -> None:
    rows = [cell("int4"), *trials("int4", None, 1, [10, 90, 20, 30])]
    assert frame(made_up_run(rows))["decode_tokens_per_s_b1"].tolist() == [25]


def test_batch_without_memory_has_a_status_and_no_speed() -> None:
    fp16 = frame(made_up_run(five_cells())).set_index("label").loc["fp16"]
    assert fp16["status"] == "ok"
    assert fp16["status_b8"] == "ok"
    assert fp16["status_b32"] == "oom"
    assert pd.isna(fp16["decode_tokens_per_s_b32"])


def test_a_failed_trial_does_not_hide_behind_its_ok_siblings() -> None:
    rows = [cell("int4"), *trials("int4", None, 8, [10, 30]), trial("int4", None, 8, status="oom")]
    row = frame(made_up_run(rows)).iloc[0]
    assert row["decode_tokens_per_s_b8"] == 20
    assert row["status_b8"] == "oom"


@pytest.mark.parametrize(
    ("windows", "steady", "peak"),
    [
        ([7.0], 7, 7),
        # Thirds of three windows: 120, 126, 118 and 101, 99, 100.
        ([120.0, 126.0, 118.0, 130.0, 104.0, 103.0, 101.0, 99.0, 100.0], 100, 126),
        # Of four, two each: the median of 80 and 90 is 85.
        ([100.0, 95.0, 80.0, 90.0], 85, 100),
    ],
)
def test_steady_state_by_hand(windows: list[float], steady: float, peak: float) -> None:
    assert steady_state(windows) == (steady, peak)


def test_nothing_has_no_steady_state() -> None:
    with pytest.raises(ValueError, match="at least one window"):
        steady_state([])


def test_the_summary_has_the_steady_state_of_each_cell() -> None:
    rows = [cell("fp16"), cell("int4"), cell("nf4")]
    rows += [window("int4", t_s, speed) for t_s, speed in [(10, 50), (20, 45), (30, 40)]]
    rows += [window("fp16", 10, 20)]
    summary = frame(made_up_run(rows)).set_index("label")
    assert summary["sustained_tokens_per_s"].dropna().to_dict() == {"fp16": 20, "int4": 40}
    assert summary["sustained_peak_tokens_per_s"].dropna().to_dict() == {"fp16": 20, "int4": 50}


def test_validity_of_a_batch_is_that_of_its_trials() -> None:
    rows = [
        cell("int4"),
        trial("int4", None, 1, decode_tokens_per_s=50, validity="ok"),
        trial("int4", None, 1, decode_tokens_per_s=51, validity="foreign_load"),
        trial("int4", None, 8, decode_tokens_per_s=300, validity="ok"),
    ]
    (row,) = frame(made_up_run(rows)).to_dict("records")
    assert (row["validity_b1"], row["validity_b8"]) == ("foreign_load", "ok")
    assert pd.isna(row["validity_b32"])
    assert row["decode_tokens_per_s_b1"] == 50.5, "marked figures are kept"


def test_batch_sizes_are_those_asked_for_and_those_measured() -> None:
    rows = [cell("int4"), trial("int4", None, 4, decode_tokens_per_s=1.0)]
    assert batch_sizes(made_up_run(rows, batch_sizes=(1, 8))) == (1, 4, 8)
    assert batch_sizes(made_up_run(rows, batch_sizes=None)) == (4,)
    assert batch_sizes(made_up_run([], batch_sizes=None)) == ()


def test_the_trials_of_a_speed_are_the_ok_ones_of_that_cell_and_batch() -> None:
    cells = {cell.label: cell for cell in summarize(made_up_run(five_cells())).cells}
    assert cells["int4"].at(8).trials == (512, 530, 541)
    assert cells["int4"].at(8).lengths == (1920, 128)
    assert cells["fp16"].at(32).trials == ()
    assert cells["awq"].at(1).trials == ()
    assert cells["awq"].at(4).lengths is None


def test_accuracy_is_over_all_questions_not_the_mean_of_subjects() -> None:
    rows = [cell("int4"), subject("int4", None, "law", 10, 10), subject("int4", None, "physics", 40, 90)]
    row = frame(made_up_run(rows)).iloc[0]
    # 50 of 100; the mean of 1 and 4/9 would be 0.72.
    assert row["mmlu"] == 0.5
    assert row["mmlu_n"] == 100
    assert (row["mmlu_ci_low"], row["mmlu_ci_high"]) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert not row["mmlu_partial"]


def test_accuracy_counts_a_repeated_subject_once_and_other_tasks_never() -> None:
    rows = [
        cell("int4"),
        subject("int4", None, "law", 1, 10),
        subject("int4", None, "law", 5, 10),
        subject("int4", None, "law", 10, 10, task="another"),
    ]
    row = frame(made_up_run(rows)).iloc[0]
    assert (row["mmlu"], row["mmlu_n"]) == (0.5, 10)


def test_partial_accuracy_is_left_out_unless_asked_for() -> None:
    run = made_up_run([cell("int4"), subject("int4", None, "law", 5, 10, partial=True)])
    assert frame(run)[["mmlu", "mmlu_ci_low", "mmlu_ci_high", "mmlu_n", "mmlu_partial"]].isna().all(axis=None)
    row = frame(run, allow_partial=True).iloc[0]
    assert row["mmlu"] == 0.5
    assert row["mmlu_partial"]


def test_one_partial_subject_makes_the_cell_partial() -> None:
    rows = [cell("int4"), subject("int4", None, "law", 5, 10), subject("int4", None, "art", 5, 10, partial=True)]
    assert frame(made_up_run(rows))["mmlu"].isna().all()


def test_cells_are_compared_with_the_16_bit_one_question_by_question() -> None:
    summary = frame(made_up_run(five_cells(), answers=FIVE_ANSWERS)).set_index("label")
    int4 = summary.loc["int4"]
    assert (int4["mmlu_right_to_wrong"], int4["mmlu_wrong_to_right"], int4["mmlu_paired_n"]) == (382, 200, 14_042)
    assert int4["mmlu_delta"] == pytest.approx((9122 - 9304) / 14_042)
    assert int4["mmlu_delta"] == pytest.approx(int4["mmlu"] - summary.loc["fp16", "mmlu"])
    # Of three cells: 2.394 × √(582 ÷ 14042 − 0.013²) ÷ √14042 = 0.00410
    assert int4["mmlu_delta_high"] - int4["mmlu_delta"] == pytest.approx(0.0041, abs=1e-4)
    # (2.394 + 0.8416) × √(582 ÷ 14042) ÷ √14042 = 0.00556
    assert int4["mmlu_detectable"] == pytest.approx(0.00556, abs=1e-4)
    assert (int4["mmlu_verdict"], int4["mmlu_margin"], int4["mmlu_design_effect"]) == ("worse", 0.01, 1)
    assert int4["mmlu_p_holm"] == pytest.approx(int4["mmlu_p_value"])  # the largest of three
    assert summary.loc["gptq", "mmlu_p_holm"] == pytest.approx(3 * summary.loc["gptq", "mmlu_p_value"])
    assert pd.isna(int4["mmlu_below_noise_floor"])


def test_the_reference_and_a_failed_cell_are_compared_with_nothing() -> None:
    summary = frame(made_up_run(five_cells(), answers=FIVE_ANSWERS)).set_index("label")
    compared = [column for column in summary.columns if column.startswith(("speedup", "mmlu_delta", "mmlu_p"))]
    compared.remove("mmlu_partial")
    assert len(compared) == 15
    assert summary.loc[["fp16", "awq"], compared].isna().all(axis=None)


def test_speed_ups_are_over_the_reference_at_the_same_batch_size() -> None:
    summary = frame(made_up_run(five_cells())).set_index("label")
    mean = {label: math.prod(values) ** (1 / 3) for label, values in SPEEDS_B8.items()}
    assert summary.loc["int4", "speedup_b8"] == pytest.approx(mean["int4"] / mean["fp16"])
    assert summary.loc["int4", "speedup_b8_low"] < summary.loc["int4", "speedup_b8"]
    # The reference has no room at batch 32.
    assert summary["speedup_b32"].isna().all()


SPEEDS_B8 = {"fp16": (310, 318, 305), "int4": (512, 530, 541)}


def test_without_a_16_bit_cell_nothing_is_compared() -> None:
    rows = [row for row in five_cells() if row.backend != "fp16"]
    summary = frame(made_up_run(rows, answers=FIVE_ANSWERS))
    assert summary[["speedup_b1", "mmlu_delta", "mmlu_p_value"]].isna().all(axis=None)
    assert summary["mmlu"].notna().sum() == 3


def test_a_cell_without_answers_has_an_accuracy_and_no_difference() -> None:
    some = {label: right for label, right in FIVE_ANSWERS.items() if label != "nf4"}
    summary = frame(made_up_run(five_cells(), answers=some)).set_index("label")
    assert pd.isna(summary.loc["nf4", "mmlu_delta"])
    assert summary.loc["nf4", "mmlu"] > 0.6
    # Corrected over the two that are compared.
    assert summary.loc["gptq", "mmlu_p_holm"] == pytest.approx(2 * summary.loc["gptq", "mmlu_p_value"])


def test_a_limited_run_is_compared_only_if_asked_for() -> None:
    rows = [
        *measured("fp16", "fp16", 16, {1: [10, 11]}, 600, 1000, partial=True),
        *measured("int4", "int4", 5, {1: [20, 21]}, 540, 1000, partial=True),
        noise("fp16", 1000, 1, 1, partial=True),
    ]
    run = made_up_run(rows, answers={"fp16": flipped(600, 1000, 0, 0), "int4": flipped(600, 1000, 70, 10)})
    plain = frame(run).set_index("label")
    accuracy = [column for column in plain.columns if column.startswith("mmlu")]
    assert plain[accuracy].isna().all(axis=None)
    asked = frame(run, allow_partial=True).set_index("label").loc["int4"]
    assert asked["mmlu_delta"] == -0.06
    assert not asked["mmlu_below_noise_floor"]


def test_a_real_difference_below_the_noise_floor_is_named_so() -> None:
    rows = [*measured("fp16", "fp16", 16, {}, 600, 1000), *measured("int4", "int4", 5, {}, 580, 1000)]
    cells = {"fp16": flipped(600, 1000, 0, 0), "int4": flipped(600, 1000, 30, 10)}
    loud = frame(made_up_run([*rows, noise("fp16", 1000, 20, 20)], answers=cells)).iloc[1]
    quiet = frame(made_up_run([*rows, noise("fp16", 1000, 3, 2)], answers=cells)).iloc[1]
    assert loud["mmlu_p_holm"] == quiet["mmlu_p_holm"] < 0.05
    assert loud["mmlu_below_noise_floor"]
    assert not quiet["mmlu_below_noise_floor"]


def test_perplexity_of_part_of_the_text_is_left_out_unless_asked_for() -> None:
    rows = [cell("fp16"), cell("int4"), text("fp16", 6.1), text("int4", 6.5, partial=True, kl_mean=0.04)]
    full = frame(made_up_run(rows)).set_index("label")
    assert full.loc["fp16", "perplexity"] == 6.1
    assert full.loc["int4", ["perplexity", "kl_mean"]].isna().all()
    allowed = frame(made_up_run(rows), allow_partial=True).set_index("label")
    assert list(allowed.loc["int4", ["perplexity", "kl_mean"]]) == [6.5, 0.04]
    assert pd.isna(allowed.loc["fp16", "kl_mean"])


def test_standard_error_over_windows_by_hand() -> None:
    # Means of the windows 2 and 6: their mean is 4, their stdev √8, its error √8 ÷ √2 = 2.
    assert mean_of_windows(np.array([[1.0, 2.0, 3.0], [6.0, 6.0, 6.0]])) == (4, pytest.approx(2))
    assert mean_of_windows(np.array([[1.0, 2.0, 3.0]])) == (2, None)


def test_columns_have_the_same_types_whether_or_not_there_are_values() -> None:
    full = frame(made_up_run(five_cells()))
    empty = frame(made_up_run([cell("int4", status="error")]))
    assert full.dtypes.to_dict() == empty.dtypes.to_dict()
    assert frame(made_up_run([])).empty


def test_summary_as_csv_leaves_missing_values_empty() -> None:
    written = frame(made_up_run([cell("int4", status="oom", error="no room")])).to_csv(index=False)
    assert written.splitlines()[1] == "made-up,meta-llama/Meta-Llama-3-8B-Instruct,int4,int4,oom,no room" + "," * 50


def test_import_leaves_scipy_and_torch_alone() -> None:
    heavy = "{'scipy', 'torch', 'matplotlib'}"
    code = f"import sys, qbench.analysis.summary_table; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
