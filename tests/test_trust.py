from __future__ import annotations

import pytest

from qbench.analysis import validity as trust
from qbench.analysis.summary import summarize
from qbench.show.phrases import caption, remarks
from tests.support.made_up_run import cell, made_up_run, trial, window


def validity(*trials: tuple[float, str | None]) -> str | None:
    rows = [trial("int4", None, 1, decode_tokens_per_s=speed, validity=told) for speed, told in trials]
    return trust.validity(rows)


def test_spread_by_hand() -> None:
    # (110 − 95) ÷ 100
    assert trust.spread([100, 95, 110]) == pytest.approx(0.15)
    assert trust.spread([7]) == 0


def test_the_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        trust.spread([])


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([], None),
        ([(100, "ok"), (104, "ok"), (100, "ok")], "ok"),
        ([(100, "ok"), (104, "throttled"), (100, "foreign_load")], "foreign_load+throttled"),
        ([(100, "foreign_load+throttled"), (100, "throttled")], "foreign_load+throttled"),
        # 10 ÷ 100 is at the bound, 11 ÷ 100 above it.
        ([(100, "ok"), (110, "ok"), (100, "ok")], "ok"),
        ([(100, "ok"), (111, "ok"), (100, "ok")], "unstable"),
        ([(100, "foreign_load"), (150, "ok")], "foreign_load+unstable"),
        # A table of an older version: not known to be ok, but known to be unstable.
        ([(100, None), (101, None)], None),
        ([(100, "ok"), (101, None)], None),
        ([(100, None), (150, None)], "unstable"),
    ],
)
def test_validity_of_a_batch(trials: list[tuple[float, str | None]], expected: str | None) -> None:
    assert validity(*trials) == expected


def test_a_failed_trial_says_nothing_of_the_others() -> None:
    rows = [
        trial("int4", None, 1, decode_tokens_per_s=100, validity="ok"),
        trial("int4", None, 1, status="oom"),
    ]
    assert trust.validity(rows) == "ok"


def test_each_reason_is_one_line_with_all_its_places_and_a_remedy() -> None:
    rows = [
        cell("fp16"),
        *(trial("fp16", None, size, decode_tokens_per_s=5, validity="foreign_load") for size in (1, 8, 32)),
        cell("int4-a", "int4"),
        trial("int4-a", "int4", 8, decode_tokens_per_s=5, validity="foreign_load"),
        *(trial("int4-a", "int4", 1, decode_tokens_per_s=speed, validity="ok") for speed in (5, 6)),
    ]
    cells = summarize(made_up_run(rows)).cells
    foreign, unstable = remarks(cells)
    assert foreign.startswith("! foreign_load (FP16 at batch 1, 8 and 32, int4-a at batch 8): other processes")
    assert unstable.startswith("! unstable (int4-a at batch 1): the trials are more than 10% apart; ")
    assert caption(cells) == (
        "!: not to be trusted: foreign load (FP16 at batch 1, 8 and 32, int4-a at batch 8); "
        "unstable (int4-a at batch 1)"
    )
    assert [one.at(1).doubtful for one in cells] == [True, True]
    assert [one.at(32).doubtful for one in cells] == [True, False]


def test_under_sustained_load_falling_clocks_are_a_finding_and_other_processes_a_fault() -> None:
    rows = [cell(label) for label in ("fp16", "int4", "nf4", "awq")]
    rows += [window("fp16", 10, 50, validity="ok"), window("fp16", 20, 20, validity="throttled")]
    rows += [window("int4", 10, 50, validity="foreign_load+throttled"), window("int4", 20, 50, validity="ok")]
    rows += [window("nf4", 10, 50, validity="ok")]
    cells = summarize(made_up_run(rows)).cells
    loads = [one.sustained for one in cells]
    assert [load and load.validity for load in loads] == ["throttled", "foreign_load+throttled", "ok", None]
    assert [load and load.doubtful for load in loads] == [False, True, False, None]
    (line,) = remarks(cells)
    assert line.startswith("! foreign_load (INT4 under sustained load): ")
    assert caption(cells) == ""


def test_nothing_wrong_is_nothing_said() -> None:
    cells = summarize(made_up_run([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=5)])).cells
    assert remarks(cells) == []
    assert caption(cells) == ""
