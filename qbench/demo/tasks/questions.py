"""The questions of `demo_qa`: those of the demo model's MMLU files, whose right option is the answer in words.

lm-evaluation-harness loads this file beside its task file, not as a module of the package.
"""

from __future__ import annotations

import csv
from pathlib import Path

from datasets import Dataset, DatasetDict

from qbench.demo import MMLU_DIR

EXAMPLES_OF = "invented_capitals"
"""The subject whose dev questions are the examples before every question."""


def read(**_task_metadata: object) -> DatasetDict:
    """`test`: the questions of all subjects in turn, so that any first part has them all; `dev`: examples."""
    subjects = [_rows(path) for path in sorted((MMLU_DIR / "test").glob("*.csv"))]
    test = [row for rows in zip(*subjects, strict=True) for row in rows]
    dev = _rows(MMLU_DIR / "dev" / f"{EXAMPLES_OF}_dev.csv")
    return DatasetDict({"test": Dataset.from_list(test), "dev": Dataset.from_list(dev)})


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    subject = path.stem.rpartition("_")[0]
    return [{"subject": subject, "question": row[0], "answer": row[1 + "ABCD".index(row[5])]} for row in rows]
