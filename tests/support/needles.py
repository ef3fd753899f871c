"""A run of two cells with answers to needle tasks at two lengths."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from qbench.records.answers import read_task_answers, task_file, write_answers
from qbench.records.rows import AccuracyRow, Row
from qbench.records.run import Run
from tests.support.made_up_run import cell, identity, made_up_run

FOUND = {
    ("fp16", "niah_single_1@4096"): 40, ("fp16", "niah_multikey_2@4096"): 38,
    ("fp16", "niah_single_1@32768"): 40, ("fp16", "niah_multikey_2@32768"): 30,
    ("int4", "niah_single_1@4096"): 40, ("int4", "niah_multikey_2@4096"): 38,
    ("int4", "niah_single_1@32768"): 28,
}  # fmt: skip
"""Of 40 prompts, the first so many: INT4's longest multikey task failed."""


def answered(folder: Path, found: dict[tuple[str, str], int], *, truncated: int = 0) -> Run:
    rows: list[Row] = [cell("fp16"), cell("int4")]
    for (label, task), correct in found.items():
        right = np.arange(40) < correct
        frame = pd.DataFrame(
            {"subject": task.partition("@")[0], "question_id": range(40), "score": right.astype(float)}
        )
        write_answers(folder / "answers" / task_file(label, task), frame)
        rows.append(
            AccuracyRow(
                **identity(label), task=task, num_fewshot=0, n=40, correct=correct, accuracy=correct / 40,
                partial=False, metric=f"{task.partition('@')[2]},none", truncated=truncated,
            )
        )  # fmt: skip
    answers, warnings = read_task_answers(folder, [row for row in rows if isinstance(row, AccuracyRow)])
    assert not warnings
    return replace(made_up_run(rows), task_answers=answers)
