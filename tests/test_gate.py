from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbench.analysis.effects import speed_ratio
from qbench.analysis.equivalence import score_interval
from qbench.analysis.power import together
from qbench.decide.gate import GateLimits, GateResult, check_status, gate
from qbench.errors import QbenchError
from qbench.records.rows import Row
from qbench.records.run import Run, read_run
from qbench.show.compare import gate_line
from tests.support.made_up_run import cell, flipped, made_up_run, measured, trial, trials

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
SPEED = GateLimits(slowdown=0.05)


def timed(speeds: Sequence[float], label: str = "int4", **fields: Any) -> list[Row]:
    return [cell(label, "int4", **fields), *trials(label, "int4", 1, speeds)]


def checked(run: list[Row] | Run, baseline: list[Row] | Run, limits: GateLimits = SPEED) -> GateResult:
    first, second = (one if isinstance(one, Run) else made_up_run(one) for one in (baseline, run))
    return gate(second, [first], limits)


def failures(result: GateResult) -> list[tuple[str, str, int | None]]:
    return [(check.cell, check.what, check.batch_size) for check in result.checks if check.status == "worse"]


def test_a_run_passes_against_itself() -> None:
    run = read_run(PUBLISHED / "smoke-xeon-2core")
    result = gate(run, [run], GateLimits(0.3, 0.5, 0.0))
    assert result.status == "ok"
    # Five cells, each with its presence, three speeds, accuracy and four peaks.
    assert len(result.checks) == 45
    assert gate_line(result).startswith("gate: passed, 45 checks against ")


def test_without_any_room_nothing_is_shown_but_memory() -> None:
    run = read_run(PUBLISHED / "smoke-xeon-2core")
    result = gate(run, [run], GateLimits(0.0, 0.0, 0.0))
    assert result.status == "inconclusive"
    assert {check.what for check in result.checks if check.ok} == {"cell", "memory"}
    assert "no number of questions would settle it" in gate_line(result)


def test_another_run_of_the_repository_is_another_model() -> None:
    with pytest.raises(QbenchError, match="a gate needs the same model on both sides"):
        gate(read_run(PUBLISHED / "tinyllama-shape-xeon-2core"), [read_run(PUBLISHED / "smoke-xeon-2core")], SPEED)


def test_a_clear_slowdown_fails_and_the_line_says_which() -> None:
    result = checked(timed([80, 81, 80.5]), timed([100, 101, 100.5]))
    assert failures(result) == [("INT4", "speed", 1)]
    line = gate_line(result)
    assert line.startswith("gate: FAILED, 1 of 2 checks against results/made-up: INT4 speed at batch 1: 0.801× [0.7")
    assert line.endswith(", limit 0.950×")


@pytest.mark.parametrize(
    ("speeds", "status"), [([90, 110, 80], "inconclusive"), ([98, 99, 98.5], "ok"), ([200, 201, 202], "ok")]
)
def test_a_slowdown_within_the_limit_and_a_gain_pass_and_trials_far_apart_do_not(
    speeds: list[float], status: str
) -> None:
    assert checked(timed(speeds), timed([100, 101, 99])).status == status


def test_the_number_of_trials_that_would_settle_it() -> None:
    """With as many, of the same spread, nine of ten gates are settled; with a third of them few are."""
    check = checked(timed([92, 108, 101]), timed([93, 107, 101])).checks[-1]
    assert (check.status, check.unit) == ("inconclusive", "trials")
    assert check.needed
    random = np.random.default_rng(0)

    def settled(trials: int) -> float:
        logs = random.normal(0, np.std(np.log([92, 108, 101]), ddof=1), (200, 2, trials))
        ratios = [speed_ratio(*map(list, np.exp(both))) for both in logs]
        return float(np.mean([not low <= 0.95 <= high for low, high in (ratio.bounds for ratio in ratios)]))

    assert 0.65 < settled(check.needed) < 0.95
    assert settled(check.needed // 3) < 0.5


def test_runs_of_the_same_thing_pass_whatever_the_number_of_cells() -> None:
    """With no room at all and six intervals, few of twenty pairs of equal runs may fail: one in forty by chance."""
    random = np.random.default_rng(0)

    def rows() -> list[Row]:
        speeds = random.normal(100, 2, (2, 3, 3))
        return [
            row
            for i, of_cell in enumerate(speeds)
            for row in [
                cell(f"c{i}", "int4"),
                *(
                    r
                    for size, values in zip((1, 8, 32), of_cell, strict=True)
                    for r in trials(f"c{i}", "int4", size, values)
                ),
            ]
        ]

    results = [checked(rows(), rows(), GateLimits(slowdown=0.0)) for _ in range(20)]
    assert sum(bool(failures(result)) for result in results) <= 2
    assert results[0].confidence == pytest.approx(1 - 0.05 / 6)


def simulated_checks(ratio: float, runs: int, figures: int) -> list[list[str]]:
    """The states of so many speeds of each of some gates with a limit of 5 %, all with the same true ratio."""
    logs = np.random.default_rng(1).normal(0, 0.02, (runs, figures, 2, 4))
    found = []
    for run in logs:
        states = []
        for baseline, own in run:
            speeds = (np.exp(baseline), ratio * np.exp(own))
            (low, _), (_, high) = (speed_ratio(*map(list, speeds), level).bounds for level in (0.95, together(figures)))
            states.append(check_status(low, high, 0.95))
        found.append(states)
    return found


def test_of_gates_at_their_limits_one_in_twenty_fails_and_fewer_pass() -> None:
    found = simulated_checks(0.95, 2_000, 4)
    assert np.mean(["worse" in states for states in found]) <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 2_000)
    assert np.mean([set(states) == {"ok"} for states in found]) <= 0.025
    # Each by itself passes wrongly one time in forty.
    passed = np.mean([state == "ok" for states in found for state in states])
    assert passed <= 0.025 + 3.5 * np.sqrt(0.025 * 0.975 / 8_000)


def test_gates_of_equal_runs_pass_and_of_slow_ones_fail() -> None:
    equal, slow = simulated_checks(1.0, 300, 4), simulated_checks(0.85, 300, 4)
    assert not any("worse" in states for states in equal)
    assert np.mean([set(states) == {"ok"} for states in equal]) > 0.3
    assert np.mean(["worse" in states for states in slow]) > 0.9


def test_of_runs_that_lose_as_much_as_is_allowed_few_pass_and_few_fail() -> None:
    n, discordance, limit = 2_400, 0.04, -0.01
    shares = [(discordance - limit) / 2, (discordance + limit) / 2, 1 - discordance]
    drawn = np.random.default_rng(2).multinomial(n, shares, size=2_000)
    low, high = score_interval(n, drawn[:, 0], drawn[:, 1], 1.959964)
    states = [check_status(*ends, limit) for ends in zip(low, high, strict=True)]
    for state in ("ok", "worse"):
        assert states.count(state) / 2_000 <= 0.025 + 3.5 * np.sqrt(0.025 * 0.975 / 2_000)


def test_single_trials_fail_only_when_more_than_a_tenth_beyond_the_limit() -> None:
    assert checked(timed([87]), timed([100])).status == "inconclusive"
    assert checked(timed([110]), timed([100])).ok
    result = checked(timed([86]), timed([100]))
    assert failures(result) == [("INT4", "speed", 1)]
    assert "a single trial" in result.checks[-1].remark


@pytest.mark.parametrize(
    ("run", "failed"),
    [
        ([], [("INT4", "cell", None)]),
        ([cell("int4", status="oom")], [("INT4", "cell", None)]),
        ([cell("int4")], [("INT4", "speed", 1)]),
        ([cell("int4"), trial("int4", "int4", 1, status="oom")], [("INT4", "speed", 1)]),
        ([*timed([100, 101, 99]), trial("int4", "int4", 1, trial=3, status="error")], [("INT4", "speed", 1)]),
        ([*timed([100, 101, 99]), trial("int4", "int4", 8, status="oom")], [("INT4", "speed", 8)]),
        ([*timed([100, 101, 99]), cell("new", "int4", status="crashed")], [("new", "cell", None)]),
        ([cell("int4"), trial("int4", "int4", 1, decode_tokens_per_s=100, new_tokens=16)], [("INT4", "speed", 1)]),
    ],
)
def test_what_is_missing_or_failed_fails(run: list[Row], failed: list[Any]) -> None:
    result = checked(run, timed([100, 101, 99]))
    assert failures(result) == failed


def test_what_failed_in_the_baseline_too_passes() -> None:
    failed = [cell("awq", status="unavailable"), trial("int4", "int4", 8, status="oom")]
    assert checked([*timed([100, 101, 99]), *failed], [*timed([100, 101, 99]), *failed]).ok
    assert checked(timed([100, 101, 99]), [*timed([100, 101, 99]), *failed]).ok


def answered(lost: int, won: int, n: int = 1000) -> Run:
    right = flipped(600 * n // 1000, n, lost, won)
    return made_up_run(measured("int4", "int4", 6, {}, sum(right.values()), n), answers={"int4": right})


@pytest.mark.parametrize(
    ("lost", "won", "drop", "status"),
    [
        (60, 10, 0.5, "worse"),
        (60, 10, 6.0, "inconclusive"),
        (60, 10, 7.0, "ok"),
        (30, 25, 0.0, "inconclusive"),
        (30, 25, 3.0, "ok"),
        (10, 60, 0.0, "ok"),
    ],
)
def test_a_loss_of_accuracy_fails_when_it_is_surely_beyond_the_limit(
    lost: int, won: int, drop: float, status: str
) -> None:
    result = checked(answered(lost, won), answered(0, 0), GateLimits(drop_points=drop))
    assert result.status == status
    assert (result.checks[-1].unit == "questions") == (status == "inconclusive")


def test_few_flips_are_not_enough_however_sure_the_interval_is() -> None:
    # 5 of 100 lost: its interval ends below 0, McNemar's p is 0.0625.
    result = checked(answered(5, 0, 100), answered(0, 0, 100), GateLimits(drop_points=0.0))
    assert result.checks[-1].high is not None
    assert result.checks[-1].high < 0
    assert result.status == "inconclusive"


def test_an_accuracy_that_is_gone_fails() -> None:
    without = made_up_run([cell("int4", peak_memory_bytes=1)])
    result = checked(without, answered(0, 0), GateLimits(drop_points=1.0))
    assert failures(result) == [("INT4", "accuracy", None)]
    assert "was not measured, or in part" in gate_line(result)


@pytest.mark.parametrize(("memory", "ok"), [(102, True), (103, False), (90, True)])
def test_memory_has_no_noise(memory: int, ok: bool) -> None:
    limits = GateLimits(memory_growth=0.02)
    assert checked([cell("int4", peak_memory_bytes=memory)], [cell("int4", peak_memory_bytes=100)], limits).ok == ok


def test_memory_of_a_generation_counts_by_itself() -> None:
    def run(peak: int) -> list[Row]:
        return [
            cell("int4", peak_memory_bytes=100),
            trial("int4", None, 32, decode_tokens_per_s=9, peak_memory_bytes=peak),
        ]

    result = checked(run(220), run(200), GateLimits(memory_growth=0.02))
    assert failures(result) == [("INT4", "memory", 32)]
    assert "INT4 memory at batch 32: 1.100×, limit 1.020×" in gate_line(result)


def test_a_gate_that_cannot_fail_is_an_error() -> None:
    with pytest.raises(QbenchError, match="give at least one of --max-slowdown"):
        checked(timed([1]), timed([1]), GateLimits())
    with pytest.raises(QbenchError, match="has no figure under these limits"):
        checked([cell("int4")], [cell("int4")])
    with pytest.raises(QbenchError, match="has no figure under these limits"):
        checked([], [])


def test_several_baselines_teach_what_another_start_changes() -> None:
    # Tight trials, and starts that are 10 % apart: the first alone calls a fourth such start worse.
    baselines = [made_up_run(timed([at, 1.001 * at, 0.999 * at])) for at in (110, 100, 105, 99)]
    slower = made_up_run(timed([100, 100.1, 99.9]))
    assert failures(gate(slower, baselines[:1], SPEED))
    found = gate(slower, baselines, SPEED)
    assert found.status == "inconclusive"
    # Starts that are 5 % apart cannot show a loss of 5 %, however many they are.
    assert "no number of starts of the baseline would settle it" in gate_line(found)
    assert gate(slower, baselines, GateLimits(slowdown=0.3)).ok
    result = gate(made_up_run(timed([60, 60.1, 59.9])), baselines, SPEED)
    assert failures(result) == [("INT4", "speed", 1)]
    assert len(result.baselines) == 4


def test_baselines_are_runs_of_the_same_thing() -> None:
    first = made_up_run(timed([100, 101, 99]))
    other_machine = made_up_run(timed([50, 51, 49]), gpus=["NVIDIA L4"])
    with pytest.raises(QbenchError, match=r"differ in device: .*; give baselines that are runs of the same thing"):
        gate(first, [first, other_machine], SPEED)
    other_lengths = made_up_run(timed([50, 51, 49]))
    other_lengths.record.config["measure"] = {"throughput": {"seq_len": 64}}
    first.record.config["measure"] = {"throughput": {"seq_len": 2048}}
    with pytest.raises(QbenchError, match=r"measure.throughput.seq_len: 2048 → 64"):
        gate(first, [first, other_lengths], SPEED)


@pytest.mark.parametrize("status", ["ok", "oom"])
def test_a_slowdown_is_seen_where_a_larger_batch_fits_in_neither_run(status: str) -> None:
    """Older runs called such a cell oom as a whole."""

    def timed(*speeds: float) -> Run:
        rows = [*trials("int4", "int4", 1, speeds), trial("int4", "int4", 32, status="oom")]
        return made_up_run([cell("int4", status=status), *rows])

    limits = GateLimits(slowdown=0.05)
    assert not checked(timed(40, 41, 40.5), timed(100, 101, 99), limits).ok
    assert checked(timed(100, 102, 99), timed(100, 101, 99), limits).ok
