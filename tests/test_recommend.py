from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.analysis.effects import AccuracyDifference
from qbench.analysis.equivalence import score_interval
from qbench.analysis.formulas import Flips
from qbench.decide.candidates import Candidate
from qbench.decide.constraints import UNLIMITED, Limits, excess
from qbench.decide.doubts import doubts
from qbench.decide.recommend import Objective, Recommendation, choose, recommend
from qbench.errors import QbenchError
from qbench.records.rows import Row, ThroughputRow
from qbench.records.run import Run, read_run
from qbench.show.recommend import NO_PRICES, Prices, cost_per_million_tokens, lines, to_dict
from tests.support.made_up_run import (
    FIVE_ANSWERS,
    GIB,
    cell,
    five_cells,
    flipped,
    made_up_run,
    measured,
    noise,
    subject,
    trial,
    trials,
)

PUBLISHED = Path(__file__).parent.parent / "results" / "published"


def asked(
    rows: Sequence[Row] | Run, batch: int = 1, objective: Objective = "speed", *, memory: float = UNLIMITED,
    drop: float = UNLIMITED, answers: Any = None, **options: Any,
) -> Recommendation:  # fmt: skip
    run = rows if isinstance(rows, Run) else made_up_run(rows, answers=answers)
    return recommend([run], batch, objective, Limits(memory * GIB, drop), **options)


def named(found: Recommendation) -> str | None:
    return found.pick.named.name if found.pick else None


def text(found: Recommendation, prices: Prices = NO_PRICES) -> str:
    return "\n".join(lines(found, prices))


def plain(label: str, gib: float, speeds: Sequence[float], **fields: Any) -> list[Row]:
    return [cell(label, "int4", peak_memory_bytes=round(gib * GIB), **fields), *trials(label, "int4", 1, speeds)]


def test_the_fastest_is_named_with_the_runner_up_and_what_failed() -> None:
    found = asked(five_cells(), answers=FIVE_ANSWERS)
    assert named(found) == "GPTQ"
    assert found.runner_up
    assert found.runner_up.name == "INT4"
    said = text(found)
    assert "the fastest of 4: 1.24× [" in said
    assert "AWQ: unavailable: no module named gptqmodel" in said


def test_a_drop_is_exceeded_when_its_interval_is_beyond_the_limit() -> None:
    # In points, three intervals together: INT4 -1.30 +- 0.41, NF4 -1.45 +- 0.42, GPTQ -1.81 +- 0.44.
    found = asked(five_cells(), drop=1.0, answers=FIVE_ANSWERS)
    assert named(found) == "INT4"
    said = text(found)
    assert "inconclusive: a drop of more than 1 points cannot be excluded: −1.30 points [−1.7" in said
    assert "GPTQ: drops by more than 1 points: −1.81 points [−2.2" in said
    assert "--max-drop binds: without it GPTQ would be named" in said
    looser = next(change for change in found.changes if change.limits.drop_points > 1)
    assert looser.limits.drop_points == pytest.approx(1.37, abs=0.04)
    assert looser.named
    assert looser.named.name == "GPTQ"


def test_a_drop_that_is_surely_smaller_is_not_doubted() -> None:
    found = asked(five_cells(), drop=2.5, answers=FIVE_ANSWERS)
    assert named(found) == "GPTQ"
    assert "cannot be excluded" not in text(found)


def test_memory_is_that_of_the_batch_size() -> None:
    rows = [
        cell("int4", peak_memory_bytes=5 * GIB),
        trial("int4", None, 32, decode_tokens_per_s=900, peak_memory_bytes=11 * GIB),
    ]
    assert named(asked(rows, 32, memory=12)) == "INT4"
    assert "needs 11.00 GiB, 1.00 GiB more than --max-memory" in text(asked(rows, 32, memory=10))


def test_the_nearest_constraints_that_would_change_the_answer() -> None:
    found = asked(five_cells(), memory=5.8, answers=FIVE_ANSWERS)
    assert named(found) == "INT4"
    tighter, looser = (
        next(c for c in found.changes if (c.limits.memory_bytes > 5.8 * GIB) == up) for up in (False, True)
    )
    assert tighter.named is None
    assert tighter.limits.memory_bytes == pytest.approx(5.74 * GIB, abs=2)
    assert looser.named
    assert looser.named.name == "GPTQ"
    assert looser.limits.memory_bytes == pytest.approx(5.915 * GIB, abs=0.006 * GIB)
    assert " MiB more): GPTQ would be named" in text(found)


def test_nothing_fits_and_one_constraint_has_to_be_relaxed() -> None:
    found = asked(five_cells(), memory=5, drop=1.2, answers=FIVE_ANSWERS)
    assert found.pick is None
    [change] = found.changes
    assert change.limits.memory_bytes == pytest.approx(5.74 * GIB, rel=2e-3)
    assert change.limits.drop_points == 1.2
    assert "nothing fits --max-memory 5.00GiB --max-drop 1.2" in text(found)
    assert to_dict(found)["relaxations"][0]["recommended"] == "INT4"


def test_nothing_fits_and_both_have_to_be_relaxed() -> None:
    # FP16 is too large, the others drop too much and are too large, too.
    found = asked(five_cells(), memory=5, drop=0.5, answers=FIVE_ANSWERS)
    assert [change.named.name for change in found.changes if change.named] == ["FP16"]
    assert found.changes[0].limits == Limits(pytest.approx(15.93 * GIB, rel=1e-3), 0.5)  # type: ignore[arg-type]
    without_fp16 = [row for row in five_cells() if not (row.label == "fp16" and hasattr(row, "decode_tokens_per_s"))]
    found = asked(without_fp16, memory=5, drop=0.5, answers=FIVE_ANSWERS)
    [both] = found.changes
    assert both.named
    assert both.named.name == "INT4"
    assert both.limits.memory_bytes > 5.7 * GIB
    assert both.limits.drop_points == pytest.approx(0.89, abs=0.04)
    assert " and --max-drop " in text(found)


def test_a_tie_in_speed_goes_to_the_smaller() -> None:
    found = asked([*plain("large", 8, [100, 103, 106]), *plain("small", 6, [99, 102, 105])])
    assert named(found) == "small"
    assert "not told apart from large (0.99× [" in text(found)
    assert "smaller memory wins: 6.00 GiB against 8.00 GiB of large" in text(found)


def test_a_tie_in_memory_too_goes_to_fewer_bits_then_to_the_faster() -> None:
    rows = [
        *plain("more", 6, [100, 103, 106], effective_bits_per_weight=4.5),
        *plain("fewer", 6, [99, 102, 105], effective_bits_per_weight=4.25),
    ]
    found = asked(rows)
    assert named(found) == "fewer"
    assert "fewer bits win: 4.25 against 4.50 of more" in text(found)
    assert named(asked([*plain("a", 6, [99, 102, 105]), *plain("b", 6, [100, 103, 106])])) == "b"


def test_exact_duplicates_are_named_by_label() -> None:
    rows = [*plain("b", 6, [100, 100]), *plain("a", 6, [100, 100])]
    found = asked(rows)
    assert named(found) == "a"
    assert found.runner_up
    assert found.runner_up.name == "b"
    assert not found.changes or all(change.named is None for change in found.changes)


@pytest.mark.parametrize(("speed", "chosen"), [(105, "small"), (125, "large")])
def test_single_trials_are_tied_within_a_tenth(speed: float, chosen: str) -> None:
    assert named(asked([*plain("large", 8, [speed]), *plain("small", 6, [100])])) == chosen


def test_what_is_not_tied_with_the_fastest_does_not_win_by_memory() -> None:
    rows = [*plain("a", 9, [100, 103, 106]), *plain("b", 8, [99, 102, 105]), *plain("c", 5, [80, 81, 80.5])]
    found = asked(rows)
    assert named(found) == "b"
    assert found.runner_up
    assert found.runner_up.name == "a"


def test_a_single_cell_is_the_only_one() -> None:
    found = asked(plain("int4", 6, [100]))
    assert named(found) == "INT4"
    assert found.runner_up is None
    assert "the only one that can be named" in text(found)


@pytest.mark.parametrize("rows", [[], [cell("int4", status="oom", error="out of memory")]])
def test_without_a_cell_that_is_ok_nothing_is_named(rows: list[Row]) -> None:
    found = asked(rows)
    assert found.pick is None
    assert found.changes == ()
    assert text(found).startswith("no cell can be named")


def test_a_cell_that_failed_at_the_batch_size_is_left_out() -> None:
    rows = [
        *plain("int4", 6, []),
        trial("int4", "int4", 1, trial=0, decode_tokens_per_s=500),
        trial("int4", "int4", 1, trial=1, status="oom"),
        *plain("slow", 6, [100, 101]),
    ]
    found = asked(rows)
    assert named(found) == "slow"
    assert "INT4: oom at batch 1" in text(found)


def test_a_mark_is_said_with_the_name() -> None:
    rows = [cell("int4"), trial("int4", None, 1, decode_tokens_per_s=500, validity="foreign_load")]
    found = asked(rows)
    assert "but: its speed is marked: foreign_load: other processes used the machine" in text(found)
    assert any("foreign_load" in caveat for caveat in to_dict(found)["recommended"]["caveats"])


def test_a_partial_accuracy_counts_only_when_asked_for() -> None:
    # FP16 has 188 of 285 right.
    right = {label: flipped(188, 285, lost, 0) for label, lost in (("fp16", 0), ("int4", 3), ("nf4", 4), ("gptq", 5))}
    rows = five_cells(partial=True)
    found = asked(rows, drop=50, answers=right)
    assert named(found) == "FP16"
    assert "GPTQ: its accuracy was not compared with a 16-bit cell's, so that --max-drop cannot be checked" in text(
        found
    )
    found = asked(rows, drop=50, answers=right, allow_partial=True)
    assert named(found) == "GPTQ"
    assert "but: its accuracy is partial: 285 questions" in text(found)


def test_without_answers_the_drop_is_that_of_independent_questions() -> None:
    found = asked(five_cells(), drop=1.0)
    assert named(found) == "GPTQ", "−1.81 ± 1.1 may be within −1"
    assert "compared as of independent questions" in text(found)


def test_what_was_not_measured_does_not_fit_a_constraint() -> None:
    rows = [cell("int4"), *trials("int4", None, 1, [100])]
    assert "its memory was not measured, so that --max-memory cannot be checked" in text(asked(rows, memory=9))
    assert named(asked(rows)) == "INT4"


def test_by_memory_the_smallest_is_named_and_equals_go_to_fewer_bits() -> None:
    assert named(asked(five_cells(), objective="memory")) == "INT4"
    rows = [
        *plain("b", 6, [100, 101], effective_bits_per_weight=4.25),
        *plain("a", 6, [100, 101], effective_bits_per_weight=4.5),
    ]
    found = asked(rows, objective="memory")
    assert named(found) == "b"
    assert "as small as a; fewer bits win" in text(found)


def test_by_accuracy_a_tie_goes_to_the_smaller_and_a_real_difference_does_not() -> None:
    rows = [
        row
        for i, label in enumerate(("fp16", "int4", "nf4"))
        for row in measured(label, label, 16 - 5 * i, {}, 600, 1000)
    ]
    right = {"fp16": flipped(600, 1000, 0, 0), "int4": flipped(600, 1000, 6, 4), "nf4": flipped(600, 1000, 60, 4)}
    rows = [row for row in rows if row.__class__.__name__ != "AccuracyRow"]
    rows += [subject(label, None, "all", sum(answers.values()), 1000) for label, answers in right.items()]
    found = asked(rows, objective="accuracy", answers=right)
    assert named(found) == "INT4"
    assert "not told apart from FP16 (−0.20 points [" in text(found)
    found = asked([*rows, noise("fp16", 1000, 40, 40)], objective="accuracy", answers=right)
    assert named(found) == "NF4", "no more answers flip than numerics alone make flip"


def test_several_runs_are_named_with_their_differences() -> None:
    here = made_up_run(plain("int4", 6, [100, 101]))
    there = made_up_run(plain("int4", 6, [150, 151]), gpus=["NVIDIA H100"], model="other/model")
    there.record.__dict__["name"] = "there"
    found = recommend([here, there], 1, "speed", Limits())
    assert named(found) == "INT4 (there)"
    said = text(found)
    assert "note: different hardware: NVIDIA A100-SXM4-80GB; NVIDIA H100" in said
    assert "note: different models: " in said


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    run = made_up_run(plain("int4", 6, [100, 101]))
    assert named(recommend([run, run], 1, "speed", Limits())) == "INT4 (results/made-up)"


def test_a_batch_size_that_nobody_measured_is_an_error() -> None:
    for objective in set(get_args(Objective)) - {"goodput"}:  # whose levels are their own
        with pytest.raises(QbenchError, match="--batch 4: was not measured; there are 1, 8, 32"):
            asked(five_cells(), 4, objective)


def test_a_first_forward_is_not_held_against_a_generation() -> None:
    timed = made_up_run([*plain("a", 6, [100, 101]), *plain("b", 9, [10, 11])])
    untimed = made_up_run([cell("c", "int4", peak_memory_bytes=GIB)], batch_sizes=None)
    found = recommend([timed, untimed], 1, "memory", Limits())
    assert named(found) == "a (results/made-up)"
    assert [why for _, why in found.excluded] == ["its memory at batch 1 was not measured"]
    alone = recommend([untimed], 1, "memory", Limits())
    assert text(alone).startswith("c after its first forward: ")


def test_an_accuracy_over_a_16_bit_cache_is_no_accuracy_of_a_quantized_one() -> None:
    rows = measured("int4", "int4", 6, {1: [100, 101]}, 60, 100)
    quantized = [row.model_copy(update={"kv_cache": "int4"}) if isinstance(row, ThroughputRow) else row for row in rows]
    said = text(recommend([made_up_run(rows), made_up_run(quantized)], 1, "speed", Limits()))
    assert "note: different caches: keys and values in 16bit; keys and values in int4" in said
    assert "its accuracy was measured with keys and values in 16bit, its speed with int4" in said
    assert "its accuracy was measured" not in text(asked(rows))


def test_accuracies_over_other_questions_are_not_ranked() -> None:
    rows = measured("int4", "int4", 6, {1: [100]}, 60, 100)
    with pytest.raises(QbenchError, match="the runs answered MMLU, 5-shot and the demo questions, 5-shot"):
        recommend([made_up_run(rows), made_up_run(rows, mmlu={"data": "demo"})], 1, "accuracy", Limits())


def test_the_cost_of_a_million_tokens() -> None:
    found = asked(plain("int4", 6, [100, 100]))
    assert found.pick
    assert cost_per_million_tokens(found.pick.named, 3.6) == pytest.approx(10)
    assert "10 a million tokens" in text(found, Prices(per_hour=3.6))
    assert cost_per_million_tokens(found.pick.named, None) is None


def test_a_run_of_the_repository() -> None:
    run = read_run(PUBLISHED / "smoke-xeon-2core")
    found = recommend([run], 1, "speed", Limits(memory_bytes=8 * 2**20))
    assert named(found) == "INT4"
    json.dumps(to_dict(found, Prices(per_hour=2.5)), allow_nan=False)
    assert "FP16: needs 10.19 MiB, 2.19 MiB more than --max-memory" in text(found)


def candidate(index: int, gib: float, drop_high: float | None, speed: float) -> Candidate:
    drop = (
        None
        if drop_high is None
        else AccuracyDifference(drop_high - 0.01, drop_high - 0.02, drop_high, 0.01, 1000, None, 0.02)
    )
    return Candidate(
        name=f"c{index}", folder=Path("r"), model="m", backend="int4", label=f"c{index}", bits=4,
        memory_bytes=round(gib * GIB), starts=((speed, speed * 1.001),), energies=(), energy_source=None,
        accuracy=None, drop=drop, is_reference=False, floor=None, failure="", caveats=(),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.001, 20), st.none() | st.floats(-0.05, 0.01), st.sampled_from([50.0, 100.0, 200.0])),
        max_size=6,
    ),
    st.sampled_from([UNLIMITED, 0.5, 2.0, 10.0]),
    st.sampled_from([UNLIMITED, 0.0, 1.0, 3.0]),
)
def test_changes_hold_as_they_are_typed_and_nothing_nearer_changes_the_answer(
    figures: list[tuple[float, float | None, float]], gib: float, drop: float
) -> None:
    from qbench.decide import recommend as module

    all_of_them = [candidate(i, *figure) for i, figure in enumerate(figures)]
    limits = Limits(gib * GIB, drop)
    pick = choose(all_of_them, "speed", limits)
    found = (
        list(module._changes(all_of_them, pick, "speed", limits))
        if pick
        else module._relaxations(all_of_them, "speed", limits)
    )
    for change in found:
        again = choose(all_of_them, "speed", change.limits)
        assert (again.named if again else None) is change.named
        assert (change.named is None) or not excess(change.named, change.limits)
        assert change.named is not (pick.named if pick else None)
        if pick and change.limits.memory_bytes != limits.memory_bytes:
            # Halfway to any need in between, the answer is still the same.
            low, high = sorted((change.limits.memory_bytes, limits.memory_bytes))
            for other in all_of_them:
                at = float(other.memory_bytes or 0)
                if low + GIB / 100 < at < min(high, 1e15) - GIB / 100 and math.isfinite(at):
                    between = choose(all_of_them, "speed", Limits(at, drop))
                    assert between
                    assert between.named is pick.named
    if pick is None and any(one.drop for one in all_of_them):
        assert found


def open_for(named: Candidate, leader: Candidate, objective: Objective = "speed", drop: float = UNLIMITED) -> list[str]:
    return [one.what for one in doubts(named, leader, objective, Limits(drop_points=drop), 0.01)]


def test_of_candidates_that_lose_as_much_as_is_allowed_one_in_forty_is_recommended_without_a_doubt() -> None:
    n, discordance, delta, runs = 2_400, 0.04, -0.01, 2_000
    shares = [(discordance - delta) / 2, (discordance + delta) / 2, 1 - discordance]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=runs)
    ends = zip(*score_interval(n, drawn[:, 0], drawn[:, 1], 1.959964), strict=True)
    sure = 0
    for (lost, won, _), (low, high) in zip(drawn.tolist(), ends, strict=True):
        flips = Flips(n, lost, won)
        drop = AccuracyDifference(flips.delta, float(low), float(high), 1.0, n, flips, 0.0)
        one = dataclasses.replace(candidate(0, 5, None, 100), drop=drop)
        sure += not open_for(one, one, drop=1.0)
    assert sure / runs <= 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / runs)


def test_of_candidates_a_tenth_slower_one_in_forty_is_as_good_as_the_best_without_a_doubt() -> None:
    logs = np.random.default_rng(0).normal(0, 0.05, (2_000, 2, 4))
    best, other = candidate(0, 5, None, 1), candidate(1, 4, None, 1)
    sure = 0
    for own, leading in np.exp(logs):
        named = dataclasses.replace(other, starts=(tuple(0.9 * own),))
        sure += not open_for(named, dataclasses.replace(best, starts=(tuple(leading),)))
    assert sure / 2_000 <= 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / 2_000)


def test_a_tie_of_noisy_trials_is_left_open_and_of_steady_ones_is_not() -> None:
    noisy = asked([*plain("large", 8, [100, 130, 80]), *plain("small", 6, [60, 120, 99])])
    assert named(noisy) == "small"
    said = text(noisy)
    assert "inconclusive: a loss of " in said
    assert " % of speed against large cannot be excluded, 10 % count as none; about " in said
    assert " trials would settle it" in said
    steady = asked([*plain("large", 8, [100, 101, 100.5]), *plain("small", 6, [99.5, 100.6, 100])])
    assert named(steady) == "small"
    assert steady.doubts == ()


def test_a_single_trial_leaves_a_tie_open() -> None:
    found = asked([*plain("large", 8, [105]), *plain("small", 6, [100])])
    assert [one.what for one in found.doubts] == ["speed"]
    assert found.doubts[0].needed is None


def test_a_tie_of_accuracies_is_open_until_the_questions_exclude_the_margin() -> None:
    def best(n: int) -> Recommendation:
        right = {"fp16": flipped(n // 2, n, 0, 0), "int4": flipped(n // 2, n, n // 100, n // 100)}
        rows = [row for i, label in enumerate(right) for row in measured(label, label, 16 - 5 * i, {}, n // 2, n)]
        return asked(rows, objective="accuracy", answers=right)

    few, many = best(400), best(8_000)
    assert named(few) == named(many) == "INT4"
    assert [(one.what, one.unit) for one in few.doubts] == [("accuracy", "questions")]
    assert few.doubts[0].needed
    assert 400 < few.doubts[0].needed < 8_000
    assert many.doubts == ()


@pytest.mark.parametrize("status", ["ok", "oom"])
def test_a_larger_batch_that_does_not_fit_excludes_nobody_at_batch_1(status: str) -> None:
    """Older runs called such a cell oom as a whole."""
    rows = [*plain("fast", 6, [100, 101], status=status), trial("fast", "int4", 32, status="oom")]
    rows += [*plain("slow", 6, [50, 51]), *trials("slow", "int4", 32, [900, 910])]
    assert named(asked(rows)) == "fast"
    assert named(asked(rows, batch=32)) == "slow"
    assert "fast: oom" in text(asked(rows, batch=32))


def test_runs_of_edited_questions_are_not_ranked_by_accuracy() -> None:
    def answered(label: str, asked: str) -> Run:
        rows = [cell(label, "int4", peak_memory_bytes=1), subject(label, "int4", "law", 6, 10)]
        return made_up_run([row.model_copy(update={"asked_sha256": asked}) if row is rows[1] else row for row in rows])

    one, other = answered("a", "1" * 64), answered("b", "2" * 64)
    with pytest.raises(QbenchError, match="questions of the same names and other content"):
        recommend([one, other], 1, "accuracy", Limits())
    assert recommend([one, answered("b", "1" * 64)], 1, "accuracy", Limits()).pick
