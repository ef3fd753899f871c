"""How many questions a run's MMLU and tasks ask, as far as that can be known without fetching them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from qbench import demo
from qbench.config import MeasureConfig, MMLUConfig, TasksConfig, needles

ALL, SUBJECTS, FEWEST = 14_042, 57, 100
"""Of cais/mmlu's test split: its questions and subjects, and the questions of the smallest subject."""

ON_THE_HUB = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "gsm8k": 1319,
    "hellaswag": 10_042,
    "lambada_openai": 5153,
    "openbookqa": 500,
    "piqa": 1838,
    "winogrande": 1267,
}
"""Questions of the split that lm-evaluation-harness asks, of tasks whose answers are right or wrong."""


def count_all(measures: MeasureConfig) -> dict[str, int | None]:
    """By `mmlu` or unit of `measure.tasks`, the questions asked; None where their number is not known here.

    Tasks whose answers are right in part are left out: they have no verdicts.
    """
    found = {"mmlu": count(measures.mmlu)} if measures.mmlu else {}
    tasks = measures.tasks
    units = tasks.units() if tasks else ()
    return found | {unit: count_task(tasks, unit) for unit in units if tasks and _is_right_or_wrong(unit)}


def _is_right_or_wrong(unit: str) -> bool:
    task, length = needles.split(unit)
    return length is None or task in needles.WHOLE


def count_task(config: TasksConfig, unit: str) -> int | None:
    """The questions of a unit of `measure.tasks`; None where they lie on the hub, or in a folder of several splits."""
    if needles.split(unit)[1] is not None:
        size: int | None = needles.QUESTIONS
    elif unit in config.data:
        size = _of_files(config.data[unit].expanduser())
    elif unit == "demo_qa":
        size = count(MMLUConfig(data="demo"))
    else:
        size = ON_THE_HUB.get(unit)
    return None if size is None else min(size, config.limit or size)


def _of_files(path: Path) -> int | None:
    """Of a file of questions, or of a folder in which only one split can hold them."""
    files = [path]
    if path.is_dir():
        asked = [file for file in path.iterdir() if file.name.startswith(("test", "validation"))]
        files = asked if len({file.name[:4] for file in asked}) == 1 else []
    sizes = [_length(file) for file in files if file.is_file()]
    known = [size for size in sizes if size is not None]
    return sum(known) if sizes and len(known) == len(sizes) else None


def _length(file: Path) -> int | None:
    """Rows of a data file; None of one that cannot be read, which is refused where the task is loaded."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq  # which takes longer to import than a plan to make

            return int(pq.read_metadata(file).num_rows)
        if file.suffix == ".csv":
            return _rows(file) - 1
        text = file.read_text(encoding="utf-8")
        return len(json.loads(text)) if file.suffix == ".json" else sum(1 for line in text.splitlines() if line.strip())
    except (OSError, ValueError):
        return None


def count(config: MMLUConfig) -> int | None:
    """The questions of the test split that are asked; None where they lie on the hub and a part of them is chosen."""
    if config.data is not None:
        folder = demo.MMLU_DIR if config.data == "demo" else Path(config.data).expanduser()
        chosen = config.subjects or ("*",)
        files = sorted({file for name in chosen for file in folder.glob(f"test/{name}_test.csv")})
        sizes = [_rows(file) for file in files]
        return sum(min(size, config.limit or size) for size in sizes) or None
    subjects = len(config.subjects) if config.subjects else SUBJECTS
    if config.limit and config.limit <= FEWEST:
        return subjects * config.limit
    return ALL if not config.subjects and not config.limit else None


def _rows(file: Path) -> int:
    with file.open(encoding="utf-8", newline="") as lines:
        return sum(1 for _ in csv.reader(lines))
