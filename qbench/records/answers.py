"""Which questions the cells of a run answered right, read back from the files in `answers/`.

MMLU's are in `<label>.parquet`, those of a task in `<label>.tasks.<task>.parquet`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

QUESTION = ["subject", "question_id"]

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


def mmlu_rows(accuracy: pd.DataFrame, label: str) -> pd.DataFrame:
    """A cell's rows of `accuracy.csv` for MMLU; of a subject that is there twice, the last."""
    rows = accuracy[(accuracy["label"] == label) & (accuracy["task"] == "mmlu")]
    return rows.drop_duplicates("subject", keep="last")


def read_answers(folder: Path, accuracy: pd.DataFrame) -> tuple[dict[str, pd.Series[bool]], list[str]]:
    """The answers of every cell for which `accuracy` has MMLU.

    Args:
        folder: a run's.
        accuracy: its `accuracy.csv`.

    Returns:
        By label, whether the cell is right, indexed by (subject, question_id); and a warning for each file that is
        missing, damaged or of another evaluation than `accuracy`, whose cell then has no answers.
    """
    answers: dict[str, pd.Series[bool]] = {}
    warnings: list[str] = []
    for label in accuracy.loc[accuracy["task"] == "mmlu", "label"].drop_duplicates():
        path = _file(folder, label)
        try:
            answers[label] = _read(path, mmlu_rows(accuracy, label))
        except (OSError, ValueError, KeyError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"is left out ({error})"
            warnings.append(f"{path}: {reason}; {label} is not compared question by question")
    return answers, warnings + _unequal(folder, answers)


def read_task_answers(folder: Path, accuracy: pd.DataFrame) -> tuple[dict[str, dict[str, pd.Series[bool]]], list[str]]:
    """By task and label, whether the cell is right, indexed as in `read_answers`; and warnings of files left out.

    Only of tasks whose questions are right or wrong; older runs have kept no such files.
    """
    found: dict[str, dict[str, pd.Series[bool]]] = {}
    warnings: list[str] = []
    known = accuracy[(accuracy["task"] != "mmlu") & accuracy["metric"].notna()]
    for (task, label), rows in known.groupby(["task", "label"], sort=False):
        if rows["correct"].isna().any():
            continue
        path = folder / "answers" / Path(task_file(str(label).rpartition("/")[2], str(task))).name
        try:
            frame = pd.read_parquet(path, columns=[*QUESTION, "score"]).set_index(QUESTION)
            found.setdefault(str(task), {})[str(label)] = _checked(frame["score"] == 1, rows)
        except (OSError, ValueError, KeyError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"is left out ({error})"
            warnings.append(f"{path}: {reason}; {label} is not compared question by question")
    return found, warnings


def _file(folder: Path, label: str) -> Path:
    """Where a cell's answers are: in `folder`, also if its tables come from somebody who says otherwise."""
    return folder / "answers" / f"{label.rpartition('/')[2]}.parquet"


def _read(path: Path, counted: pd.DataFrame) -> pd.Series[bool]:
    frame = pd.read_parquet(path, columns=[*QUESTION, "predicted", "gold"]).set_index(QUESTION)
    return _checked(frame["predicted"] == frame["gold"], counted)


def _checked(right: pd.Series[bool], counted: pd.DataFrame) -> pd.Series[bool]:
    """The answers, if they are those that the rows of `accuracy.csv` count."""
    counted = counted.drop_duplicates("subject", keep="last")
    there, expected = (int(right.sum()), len(right)), (int(counted["correct"].sum()), int(counted["n"].sum()))
    if there != expected or right.index.has_duplicates:
        raise ValueError(
            f"{there[0]:,} of {there[1]:,} questions right, but accuracy.csv has {expected[0]:,} of {expected[1]:,}"
        )
    return right


def _unequal(folder: Path, answers: dict[str, pd.Series[bool]]) -> list[str]:
    """A warning if the cells answered different questions."""
    asked = [set(right.index) for right in answers.values()]
    if all(questions == asked[0] for questions in asked):
        return []
    counts = ", ".join(f"{label} {len(right):,}" for label, right in answers.items())
    return [
        f"{folder / 'answers'}: the cells answered different questions ({counts}; {len(set.intersection(*asked)):,} "
        "are common to all); two cells are compared on those that both answered"
    ]
