"""Which questions the cells of a run answered right, read back from the files in `answers/`.

MMLU's are in `<label>.parquet`, those of a task in `<label>.tasks.<task>.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from qbench.records.rows import AccuracyRow

if TYPE_CHECKING:  # pandas takes longer to import than a run to read
    import pandas as pd

QUESTION = ["subject", "question_id"]

Answers = Mapping[tuple[str, Any], bool]
"""By subject and question_id, whether a cell is right."""

TASKS = ".tasks."
"""Between a label and a task in the name of a file."""


def task_file(label: str, task: str) -> str:
    """Name of the file with a cell's answers to a task: subject, question_id, score, target, text and answer.

    `score` is the question's own, `target` what is right; of a task that generates, `text` is what the model wrote and
    `answer` what the task's filter made of it.
    """
    return f"{label}{TASKS}{task}.parquet"


def write_answers(path: Path, answers: pd.DataFrame) -> None:
    """Write a file of answers, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    answers.to_parquet(partial, index=False)
    partial.replace(path)


def mmlu_rows(accuracy: Iterable[AccuracyRow], label: str) -> list[AccuracyRow]:
    """A cell's rows of `accuracy.csv` for MMLU; of a subject that is there twice, the last."""
    return _last(row for row in accuracy if row.label == label and row.task == "mmlu")


def read_answers(folder: Path, accuracy: Sequence[AccuracyRow]) -> tuple[dict[str, Answers], list[str]]:
    """The answers of every cell for which `accuracy` has MMLU.

    Args:
        folder: a run's.
        accuracy: its `accuracy.csv`.

    Returns:
        By label, whether the cell is right; and a warning for each file that is missing, damaged or of another
        evaluation than `accuracy`, whose cell then has no answers.
    """
    answers: dict[str, Answers] = {}
    warnings: list[str] = []
    for label in dict.fromkeys(row.label for row in accuracy if row.task == "mmlu"):
        path = _file(folder, label)
        try:
            answers[label] = _read(path, mmlu_rows(accuracy, label), "predicted", "gold")
        except (OSError, ValueError, KeyError) as error:
            warnings.append(_left_out(path, label, error))
    return answers, warnings + _unequal(folder, answers)


def read_task_answers(folder: Path, accuracy: Iterable[AccuracyRow]) -> tuple[dict[str, dict[str, Answers]], list[str]]:
    """By task and label, whether the cell is right; and warnings of files left out.

    Only of tasks whose questions are right or wrong; older runs have kept no such files.
    """
    known: dict[tuple[str, str], list[AccuracyRow]] = {}
    for row in accuracy:
        if row.task != "mmlu" and row.metric is not None:
            known.setdefault((row.task, row.label), []).append(row)
    found: dict[str, dict[str, Answers]] = {}
    warnings: list[str] = []
    for (task, label), rows in known.items():
        if any(row.correct is None for row in rows):
            continue
        path = folder / "answers" / Path(task_file(label.rpartition("/")[2], task)).name
        try:
            answers = _read(path, _last(rows), "score")
            found.setdefault(task, {})[label] = answers
        except (OSError, ValueError, KeyError) as error:
            warnings.append(_left_out(path, label, error))
    return found, warnings


def _last(rows: Iterable[AccuracyRow]) -> list[AccuracyRow]:
    return list({row.subject: row for row in rows}.values())


def _left_out(path: Path, label: str, error: Exception) -> str:
    reason = "is missing" if isinstance(error, FileNotFoundError) else f"is left out ({error})"
    return f"{path}: {reason}; {label} is not compared question by question"


def _file(folder: Path, label: str) -> Path:
    """Where a cell's answers are: in `folder`, also if its tables come from somebody who says otherwise."""
    return folder / "answers" / f"{label.rpartition('/')[2]}.parquet"


def _read(path: Path, counted: Sequence[AccuracyRow], given: str, wanted: str | None = None) -> Answers:
    """Where the column `given` is as the column `wanted` says, or 1; only as the rows of `accuracy.csv` count them.

    Raises:
        ValueError: the file is damaged, or of another evaluation.
        KeyError: it lacks a column.
    """
    # `pq.read_table` would import pandas.
    with pq.ParquetFile(path) as file:
        columns = file.read(columns=[name for name in (*QUESTION, given, wanted) if name]).to_pydict()
    questions = list(zip(*(columns[name] for name in QUESTION), strict=True))
    expected = columns[wanted] if wanted else [1] * len(questions)
    right = {asked: one == other for asked, one, other in zip(questions, columns[given], expected, strict=True)}
    there, correct, n = sum(right.values()), sum(row.correct or 0 for row in counted), sum(row.n for row in counted)
    if (there, len(questions)) != (correct, n) or len(right) != n:
        raise ValueError(f"{there:,} of {len(questions):,} questions right, but accuracy.csv has {correct:,} of {n:,}")
    return right


def _unequal(folder: Path, answers: Mapping[str, Answers]) -> list[str]:
    """A warning if the cells answered different questions."""
    asked = [right.keys() for right in answers.values()]
    if all(questions == asked[0] for questions in asked):
        return []
    counts = ", ".join(f"{label} {len(right):,}" for label, right in answers.items())
    return [
        f"{folder / 'answers'}: the cells answered different questions ({counts}; "
        f"{len(set(asked[0]).intersection(*asked)):,} are common to all); two cells are compared on those that both "
        "answered"
    ]
