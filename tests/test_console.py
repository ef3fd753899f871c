from __future__ import annotations

import dataclasses
from io import StringIO

from rich.console import Console

from qbench.console import print_results
from qbench.results import Run
from tests.made_up_run import FIVE_ANSWERS, cell, five_cells, flipped, made_up_run, measured, noise


def printed(run: Run) -> str:
    out = StringIO()
    print_results(Console(file=out, width=120), run)
    return out.getvalue()


def test_the_comparison_fits_120_columns_with_every_word_on_its_cells_line() -> None:
    run = made_up_run(five_cells(), answers=FIVE_ANSWERS | {"nf4": flipped(9304, 14_042, 500, 480)})
    text = printed(run)
    compared = text[text.index("compared with FP16") :]
    rows = [line for line in compared.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["INT4", "NF4", "GPTQ"]
    assert "2.33× [" in rows[0]
    assert "−1.3 points [−1.6, −1.0], p < 0.001" in rows[0]
    assert "within noise" in rows[1]
    assert "–" in rows[2].split("│")[4], "FP16 has no speed at batch 32 to compare with"
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
    assert "within noise, partial" in text


def test_nothing_to_compare_is_no_second_table_and_warnings_are_printed() -> None:
    run = made_up_run([cell("int4", peak_memory_bytes=2**30)])
    text = printed(dataclasses.replace(run, warnings=("answers/[int4].parquet: is missing",)))
    assert "compared with" not in text
    assert "warning: answers/[int4].parquet: is missing" in text
