"""MMLU's questions as tasks of lm-evaluation-harness: from the hub, or from a folder in the published CSV layout.

The layout is that of https://github.com/hendrycks/test: `test/<subject>_test.csv` and `dev/<subject>_dev.csv`, no
header, six columns: question, A, B, C, D, answer letter. A folder changes where a task's rows come from and nothing
else: prompts, few-shot examples and metric are those of lm-evaluation-harness's own task files.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from qbench import demo
from qbench.compat.lm_eval import MMLU_FILES, mmlu_template
from qbench.config import MMLUConfig
from qbench.errors import QbenchError
from qbench.text import suggestion

LETTERS = "ABCD"
PREFIX = "mmlu_"
"""A subject's task is named `mmlu_<subject>`, as lm-evaluation-harness names its own."""

LAYOUT = "measure.mmlu.data takes a folder with test/<subject>_test.csv and dev/<subject>_dev.csv"


def load_tasks(config: MMLUConfig) -> list[ConfigurableTask]:
    """The tasks of the chosen subjects, their questions read, sorted by subject.

    Raises:
        QbenchError: the hub cannot be reached, the folder is not in the published layout, a subject is unknown, or
            there are fewer dev questions than few-shot examples.
    """
    manager = task_manager()
    tasks = _hub_tasks(manager, config.subjects) if config.data is None else _local_tasks(manager, config)
    for task in tasks:
        if len(task.dataset["dev"]) < config.num_fewshot:
            raise QbenchError(
                f"{subject_of(task)}: {len(task.dataset['dev'])} dev questions, fewer than "
                f"measure.mmlu.num_fewshot ({config.num_fewshot})"
            )
    return sorted(tasks, key=subject_of)


def task_manager() -> TaskManager:
    """Knows MMLU's task files only: reading all that lm-evaluation-harness ships (13,000) takes many seconds."""
    return TaskManager(include_defaults=False, include_path=MMLU_FILES)


def subject_of(task: ConfigurableTask) -> str:
    """The subject that a task asks about."""
    name: str = task.task_name
    return name.removeprefix(PREFIX)


def known_subjects() -> list[str]:
    """The 57 subjects of MMLU."""
    return sorted(path.stem.removeprefix(PREFIX) for path in MMLU_FILES.glob(f"{PREFIX}*.yaml"))


def find_subjects(folder: Path) -> list[str]:
    """The subjects that `folder` has test questions of, sorted.

    Raises:
        QbenchError: there is none.
    """
    subjects = sorted(path.name.removesuffix("_test.csv") for path in folder.glob("test/*_test.csv"))
    if not subjects:
        raise QbenchError(f"{folder}: no test/*_test.csv here; {LAYOUT}")
    return subjects


def read_subject(folder: str, subject: str, **_task_metadata: object) -> DatasetDict:
    """One subject with the splits and columns of the hub's cais/mmlu; lm-evaluation-harness calls it for a task's rows.

    Raises:
        QbenchError: a file is missing, empty or not in the published layout.
    """
    splits = {
        split: read_questions(Path(folder, split, f"{subject}_{split}.csv"), subject) for split in ("test", "dev")
    }
    return DatasetDict({split: Dataset.from_list(questions) for split, questions in splits.items()})


def read_questions(path: Path, subject: str) -> list[dict[str, Any]]:
    """The rows of one published CSV, every text exactly as it stands in the file.

    Raises:
        QbenchError: no such file, no question in it, or a record that is not a question; its first line is named.
    """
    questions = []
    line = 1
    try:
        # Spreadsheets begin a file with a mark of its byte order, which is no part of a question.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for fields in reader:
                questions.append(_question(fields, subject, f"{path}, line {line}"))
                line = reader.line_num + 1
    except OSError as error:
        raise QbenchError(f"{path}: {error.strerror}; {LAYOUT}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise QbenchError(f"{path}, line {line} or later: not a CSV in UTF-8 ({error})") from error
    if not questions:
        raise QbenchError(f"{path}: no questions in it")
    return questions


def _question(fields: list[str], subject: str, where: str) -> dict[str, Any]:
    if len(fields) != 6:
        raise QbenchError(f"{where}: {len(fields)} columns instead of 6 (question, A, B, C, D, answer letter)")
    question, *choices, letter = fields
    if letter not in tuple(LETTERS):
        raise QbenchError(f"{where}: the answer is {letter!r}, not one of A, B, C and D")
    return {"question": question, "subject": subject, "choices": choices, "answer": LETTERS.index(letter)}


def _hub_tasks(manager: TaskManager, subjects: Iterable[str] | None) -> list[ConfigurableTask]:
    names = ["mmlu"] if subjects is None else [f"{PREFIX}{name}" for name in _choose(known_subjects(), subjects)]
    try:
        return list(manager.load(names)["tasks"].values())
    except (OSError, ValueError) as error:  # what `datasets` raises for a hub it cannot reach, and for half a cache
        reason = str(error).partition("\n")[0]
        raise QbenchError(f"the hub's cais/mmlu cannot be read ({reason}). Offline, {LAYOUT}") from error


def _local_tasks(manager: TaskManager, config: MMLUConfig) -> list[ConfigurableTask]:
    folder = demo.MMLU_DIR if config.data == "demo" else Path(str(config.data)).expanduser()
    subjects = _choose(find_subjects(folder), config.subjects)
    return list(manager.load([_local_spec(folder, subject) for subject in subjects])["tasks"].values())


def _local_spec(folder: Path, subject: str) -> dict[str, Any]:
    """lm-evaluation-harness's own task configuration, with the rows of `folder` in place of the hub's."""
    spec = mmlu_template()
    own = MMLU_FILES / f"{PREFIX}{subject}.yaml"
    if own.is_file():
        spec |= yaml.safe_load(own.read_text(encoding="utf-8"))
        del spec["include"]
    else:
        about = subject.replace("_", " ")
        spec["description"] = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    spec["task"] = f"{PREFIX}{subject}"
    spec["custom_dataset"] = read_subject
    spec["dataset_kwargs"] = {"folder": str(folder), "subject": subject}
    return spec


def _choose(available: list[str], wanted: Iterable[str] | None) -> list[str]:
    if wanted is None:
        return available
    for subject in wanted:
        if subject not in available:
            hint = suggestion(subject, available) or f"; there are {', '.join(available)}"
            raise QbenchError(f"measure.mmlu.subjects: no subject {subject!r}{hint}")
    return sorted(set(wanted))
