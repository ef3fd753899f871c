from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from qbench.records.answers import read_answers
from qbench.records.rows import AccuracyRow
from qbench.records.run import read_run, write_table
from tests.support.made_up_run import cell, made_up_run, subject
from tests.support.summaries import frame


def write_answers(folder: Path, label: str, predicted: Sequence[int], gold: Sequence[int], name: str = "law") -> None:
    (folder / "answers").mkdir(exist_ok=True)
    columns = {"subject": name, "question_id": range(len(gold)), "predicted": predicted, "gold": gold}
    pd.DataFrame(columns).to_parquet(folder / "answers" / f"{label}.parquet", index=False)


def counted(**correct: int) -> list[AccuracyRow]:
    return [subject(label, None, "law", right, 4) for label, right in correct.items()]


def test_an_answer_is_right_where_it_is_the_gold_one(tmp_path: Path) -> None:
    write_answers(tmp_path, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    answers, warnings = read_answers(tmp_path, counted(fp16=2))
    assert answers["fp16"] == {("law", 0): True, ("law", 1): False, ("law", 2): True, ("law", 3): False}
    assert warnings == []


def test_a_missing_file_is_a_warning(tmp_path: Path) -> None:
    write_answers(tmp_path, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    answers, (warning,) = read_answers(tmp_path, counted(fp16=2, int4=2))
    assert list(answers) == ["fp16"]
    assert "int4.parquet: is missing; int4 is not compared question by question" in warning


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"subject,question_id\n"])
def test_a_damaged_file_is_a_warning(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "fp16.parquet").write_bytes(content)
    answers, (warning,) = read_answers(tmp_path, counted(fp16=2))
    assert answers == {}
    assert "fp16.parquet: is left out (" in warning


def test_a_file_without_the_columns_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    pd.DataFrame({"subject": ["law"]}).to_parquet(tmp_path / "answers" / "fp16.parquet")
    answers, warnings = read_answers(tmp_path, counted(fp16=2))
    assert answers == {}
    assert len(warnings) == 1


def test_answers_of_another_evaluation_than_the_table_are_left_out(tmp_path: Path) -> None:
    write_answers(tmp_path, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    answers, (warning,) = read_answers(tmp_path, counted(fp16=3))
    assert answers == {}
    assert "2 of 4 questions right, but accuracy.csv has 3 of 4" in warning


def test_different_questions_are_a_warning_that_counts_the_common_ones(tmp_path: Path) -> None:
    write_answers(tmp_path, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    write_answers(tmp_path, "int4", [0, 1, 2, 3, 0], [0, 2, 2, 0, 0])
    rows = [subject("fp16", None, "law", 2, 4), subject("int4", None, "law", 3, 5)]
    answers, (warning,) = read_answers(tmp_path, rows)
    assert list(answers) == ["fp16", "int4"]
    assert "different questions (fp16 4, int4 5; 4 are common to all)" in warning


def test_other_tasks_and_cells_without_accuracy_need_no_answers(tmp_path: Path) -> None:
    rows = [subject("fp16", None, "", 1, 2, task="arc_easy")]
    assert read_answers(tmp_path, rows) == ({}, [])
    assert read_answers(tmp_path, []) == ({}, [])


def test_a_run_is_read_with_its_answers_and_compared(tmp_path: Path) -> None:
    run = made_up_run([])
    (tmp_path / "run.json").write_text(run.record.model_dump_json())
    rows = [cell("fp16"), cell("int4")]
    write_table(tmp_path / "cells.csv", type(rows[0]), rows)
    write_table(
        tmp_path / "accuracy.csv", AccuracyRow, [subject(label, None, "law", 2, 4) for label in ("fp16", "int4")]
    )
    write_answers(tmp_path, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    write_answers(tmp_path, "int4", [0, 2, 1, 3], [0, 2, 2, 0])
    read = read_run(tmp_path)
    assert read.warnings == ()
    assert read.noise == ()
    int4 = frame(read).iloc[1]
    assert (int4["mmlu_right_to_wrong"], int4["mmlu_wrong_to_right"], int4["mmlu_p_value"]) == (1, 1, 1)
    assert int4["mmlu_p_holm"] == 1


def test_a_label_that_is_a_path_reads_nothing_outside_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_answers(run, "fp16", [0, 1, 2, 3], [0, 2, 2, 0])
    (run / "answers" / "fp16.parquet").rename(tmp_path / "mine.parquet")
    answers, (warning,) = read_answers(run, counted(**{"../../mine": 2}))
    assert answers == {}
    assert "answers/mine.parquet: is missing" in warning
