"""lm-evaluation-harness: its index of task files, and where a loaded task keeps its questions and examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import lm_eval.tasks
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

MMLU_FILES = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
"""The folder of MMLU's task files, `mmlu_<subject>.yaml`."""

RULER_FILES = Path(lm_eval.tasks.__file__).parent / "ruler"
"""The folder of RULER's task files."""


@contextmanager
def without_environment() -> Iterator[None]:
    """Evaluations do not describe the machine in their results.

    For that `lm_eval.simple_evaluate` starts pip, git, lscpu and other programs, for a second or two each time, and
    the run's own record says what is needed.
    """
    described = lm_eval.evaluator.add_env_info
    lm_eval.evaluator.add_env_info = lambda storage: None
    try:
        yield
    finally:
        lm_eval.evaluator.add_env_info = described


def mmlu_template() -> dict[str, Any]:
    """What all of MMLU's task files include: prompt, metric, splits."""
    spec: dict[str, Any] = yaml.safe_load((MMLU_FILES / "_default_template_yaml").read_text(encoding="utf-8"))
    return spec


def is_task(manager: TaskManager, name: str) -> bool:
    """Whether a known name is that of one task, not of a tag or a group."""
    return name in manager.all_subtasks


def task_file(manager: TaskManager, name: str) -> dict[str, Any] | None:
    """The content of the file of a task or group, functions unresolved; None for a tag and for an unknown name."""
    entry = manager.task_index.get(name)
    return entry.cfg if entry else None


def tagged(manager: TaskManager, name: str) -> list[str]:
    """The tasks of a tag, sorted; of anything else, none."""
    entry = manager.task_index.get(name)
    return sorted(entry.tags) if entry and entry.cfg is None else []


@dataclass(frozen=True, slots=True)
class Metric:
    """One of a task's figures: a metric, of answers that have gone through a filter."""

    name: str
    filter: str
    """`none` is lm-evaluation-harness's own, which takes the first response as it is."""

    def __str__(self) -> str:
        """As lm-evaluation-harness's results name it."""
        return f"{self.name},{self.filter}"


def metrics(task: Task) -> list[Metric]:
    """Those of a task, in the order of its file, each of the first filter there."""
    first = task._filters[0].name
    return [Metric(name, first) for name in task.aggregation()]


def questions(task: Task) -> int:
    """How many questions a task asks."""
    return len(task.eval_docs)


def examples(task: Task) -> int:
    """How many rows few-shot examples are drawn from."""
    return len(task.sampler.df)


def draws_from_questions(task: Task) -> bool:
    """Whether those rows are the questions themselves, so that one is never an example of its own."""
    return bool(task.fewshot_cfg.split == task.config.test_split)
