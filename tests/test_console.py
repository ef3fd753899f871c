from __future__ import annotations

import dataclasses
from io import StringIO

from rich.console import Console

from qbench.records.run import Run
from qbench.show.tables import print_results
from tests.support.made_up_run import (
    FIVE_ANSWERS,
    cell,
    five_cells,
    flipped,
    made_up_run,
    measured,
    noise,
    trial,
    window,
)
from tests.support.made_up_run import text as text_row


def printed(run: Run) -> str:
    out = StringIO()
    print_results(Console(file=out, width=120), run)
    return out.getvalue()


def table(text: str, title: str) -> list[str]:
    """The lines of the table under `title` that begin a row."""
    below = text[text.index(title) :]
    return [line for line in below[: below.index("└")].splitlines() if line.startswith("│")]


def test_the_comparison_fits_120_columns_with_every_word_on_its_cells_line() -> None:
    predictions = [
        text_row("fp16", 6.1375),
        text_row("int4", 6.2, kl_mean=0.0123, kl_stderr=0.0004, tail_mass_mean=0.025, top1_agreement=0.9876),
    ]
    rows = [*five_cells(), *predictions]
    run = made_up_run(rows, answers=FIVE_ANSWERS | {"nf4": flipped(9304, 14_042, 500, 480)})
    text = printed(run)
    assert "KL says how far predictions are from those of 16 bit, and not which backend does a task better" in " ".join(
        text.split()
    )
    speeds = table(text, "speed, compared with FP16")
    assert [row.split()[1] for row in speeds] == ["INT4", "NF4", "GPTQ"]
    assert "2.33× [" in speeds[0]
    assert "–" in speeds[2].split("│")[4], "FP16 has no speed at batch 32 to compare with"
    int4, nf4, gptq = ([field.strip() for field in row.split("│")[1:-1]] for row in table(text, "accuracy, compared"))
    assert int4 == ["INT4", "worse by 1.3 points [0.9, 1.7], p < 0.001", "382 / 200", "0.56"]
    assert nf4 == ["NF4", "no worse than 1 point: −0.1 points [−0.7, +0.4]", "500 / 480", "0.73"]
    assert gptq[2] == "454 / 200"
    fp16, int4 = ([field.strip() for field in row.split("│")[1:-1]] for row in table(text, "predictions, compared"))
    assert fp16 == ["FP16", "6.138", "–", "–", "–"]
    assert int4 == ["INT4", "6.2", "1.23e-02 ± 4e-04", "2.5 %", "98.76 %"]
    assert max(map(len, text.splitlines())) <= 120


def test_the_noise_floor_is_said_below() -> None:
    text = printed(made_up_run([*five_cells(), noise("fp16", 14_042, 12, 10)], answers=FIVE_ANSWERS))
    assert (
        "noise floor, batch 8 against 4: 22 of 14,042 questions flip, accuracy moves by 0.01 points, log-probabilities "
        "by at most 0.031"
    ) in " ".join(text.split())


def test_a_limited_comparison_says_so() -> None:
    rows = [row for label in ("fp16", "int4") for row in measured(label, label, 5, {}, 50, 100, partial=True)]
    text = printed(made_up_run(rows, answers={"fp16": flipped(50, 100, 0, 0), "int4": flipped(50, 100, 2, 2)}))
    assert "inconclusive: a loss of up to 5.3 points cannot be excluded, partial" in text


def test_a_speed_that_cannot_be_trusted_is_marked_and_explained() -> None:
    rows = [
        cell("fp16"),
        trial("fp16", None, 1, decode_tokens_per_s=41.5, validity="ok"),
        trial("fp16", None, 8, decode_tokens_per_s=310, validity="foreign_load+throttled"),
        cell("int4"),
        trial("int4", None, 8, decode_tokens_per_s=530, validity="foreign_load"),
    ]
    text = printed(made_up_run(rows))
    fp16, int4, *_ = (line.split("│") for line in text.splitlines() if line.startswith(("│ FP16", "│ INT4")))
    assert (fp16[5].strip(), fp16[6].strip(), int4[6].strip()) == ("41.5", "310.0 !", "530.0 !")
    words = " ".join(text.split())
    assert "! foreign_load (FP16 at batch 8, INT4 at batch 8): other processes used the machine; end" in words
    assert "! throttled (FP16 at batch 8): " in words
    assert text.count("! ") - text.count("! │") == 2


def test_speeds_that_lasted_are_said_below() -> None:
    speeds = [(10, 120, "ok"), (20, 110, "foreign_load"), (30, 90, "ok")]
    rows = [cell("int4"), *(window("int4", t_s, speed, validity=found) for t_s, speed, found in speeds)]
    text = " ".join(printed(made_up_run(rows)).split())
    assert "sustained: INT4: 90.0 tok/s in the last third, 75% of the peak of 120.0 in the first !" in text
    assert "! foreign_load (INT4 under sustained load): other processes" in text


def test_nothing_to_compare_is_no_second_table_and_warnings_are_printed() -> None:
    run = made_up_run([cell("int4", peak_memory_bytes=2**30)])
    text = printed(dataclasses.replace(run, warnings=("answers/[int4].parquet: is missing",)))
    assert "compared with" not in text
    assert "warning: answers/[int4].parquet: is missing" in text


def test_cells_of_several_machines_are_told_apart() -> None:
    assert "several machines" not in printed(made_up_run([cell("fp16", host="a"), cell("int4")]))
    cells = [cell("fp16", host="a"), cell("int4", host="b"), cell("nf4", host="a"), cell("awq")]
    assert "measured on several machines (a: fp16, nf4; b: int4); compare" in printed(made_up_run(cells))
