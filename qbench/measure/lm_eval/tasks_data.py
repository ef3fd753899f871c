"""Tasks of lm-evaluation-harness by name, their questions from the hub or from local files.

Local files change where a task's rows come from and nothing else: prompts, few-shot examples and metrics are those of
its task file. Rows need the columns of the data set that the task file names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from qbench import demo
from qbench.compat.lm_eval import Metric, draws_from_questions, examples, is_task, metrics, tagged, task_file
from qbench.config import TasksConfig
from qbench.errors import QbenchError
from qbench.measure.lm_eval.adapter import limits_of
from qbench.measure.lm_eval.needles import length_of
from qbench.text import suggestion

GENERATES = "generate_until"
OUTPUT_TYPES = ("loglikelihood", "multiple_choice", GENERATES)
"""Of a task that is scored by log-likelihoods of its answers, or by what a model generates."""

SHARES = ("acc", "exact_match", "em", "f1")
"""Metrics between 0 and 1, the larger the better; those that end in `_acc` are, too."""

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""What reads a file, as `datasets.load_dataset` names it."""

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
"""Keys of a task file that name a split of its data set."""


def task_manager(names: Sequence[str]) -> TaskManager:
    """Knows the demo model's tasks and, if another is among `names`, all that lm-evaluation-harness ships.

    Those are 13,000 files, whose index takes some seconds.
    """
    own = {path.stem for path in demo.TASKS_DIR.glob("*.yaml")}
    return TaskManager(include_defaults=not own.issuperset(names), include_path=str(demo.TASKS_DIR))


def load_tasks(manager: TaskManager, config: TasksConfig) -> dict[str, list[Task]]:
    """The tasks of every name in `config` but needle tasks, sorted by their own: one, or those of a tag or group.

    Raises:
        QbenchError: a name is unknown, a task is scored in another way, has no accuracy, samples or executes what it
            generates, its questions cannot be read, or there are fewer examples than asked for.
    """
    for name in config.stored:
        if name not in manager.all_tasks:
            hint = suggestion(name, manager.all_tasks)
            raise QbenchError(f"measure.tasks.names: lm-evaluation-harness has no task {name!r}{hint}")
        if name in config.data and not is_task(manager, name):
            raise QbenchError(f"measure.tasks.data: {name} is a group of tasks; name those that have data")
        for own, file in _task_files(manager, name):
            _check_output_type(own, file.get("output_type"))
            _check_code(own, file)
            _check_metrics(own, file)
    return {name: _load(manager, name, config) for name in config.stored}


def _task_files(manager: TaskManager, member: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The task files behind a task, a tag, a group or a list of such, by their own names.

    What lm-evaluation-harness does not know it passes over, too.
    """
    if isinstance(member, list):
        for one in member:
            yield from _task_files(manager, one)
    elif isinstance(member, dict):
        yield from _task_files(manager, member.get("task"))
    elif (file := task_file(manager, member)) is None:
        yield from _task_files(manager, tagged(manager, member))
    elif isinstance(file.get("task"), str):
        yield member, file
    else:
        yield from _task_files(manager, file.get("task"))


def _check_code(name: str, file: Mapping[str, Any]) -> None:
    """Refuse a task that would execute what the model has written."""
    if file.get("unsafe_code"):
        raise QbenchError(
            f"measure.tasks.names: {name} runs the programs that a model writes, and nothing that a model wrote is "
            "executed here. Leave it out"
        )


def _check_metrics(name: str, file: dict[str, Any]) -> None:
    """Refuse a metric that is a program on the hub: it would be fetched and run."""
    remote = [metric["metric"] for metric in file.get("metric_list") or [] if metric.get("hf_evaluate") is True]
    if remote:
        raise QbenchError(
            f"measure.tasks.names: {name} is scored by {remote[0]} of the hub's `evaluate`, code that would be fetched "
            "and run here. Leave it out"
        )


def _load(manager: TaskManager, name: str, config: TasksConfig) -> list[Task]:
    path = config.data.get(name)
    own = task_file(manager, name) or {}
    # Only as a member of a group a task file can be loaded with changes.
    spec: Any = name if path is None else {"group": "local", "task": [_local(name, own, path.expanduser(), config)]}
    try:
        tasks = sorted(manager.load([spec])["tasks"].values(), key=lambda task: str(task.task_name))
    except ImportError as error:
        raise QbenchError(
            f"measure.tasks.names: {name} needs a library that is not installed here ({error})"
        ) from error
    except Exception as error:  # whatever datasets, templates and the tasks' own code raise for rows they cannot use
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if path is not None:
            raise QbenchError(f"measure.tasks.data: {path} does not fit {name} ({reason})") from error
        raise QbenchError(
            f"{name}: its questions cannot be read ({reason}). Offline, give their files: measure.tasks.data"
        ) from error
    for task in tasks:
        _check_output_type(str(task.task_name), task.OUTPUT_TYPE)
        _check(task, config)
    return tasks


def _check_output_type(name: str, output_type: str | None) -> None:
    if output_type is not None and output_type not in OUTPUT_TYPES:
        raise QbenchError(
            f"measure.tasks.names: {name} is a task of type {output_type}; only {', '.join(OUTPUT_TYPES)} can be "
            "measured. Leave it out"
        )


def scored_by(task: Task) -> Metric:
    """The metric that is reported as a task's accuracy: `acc`, or the first of its file that is a share.

    That of a needle task is named by its length.

    Raises:
        QbenchError: it has none.
    """
    found = metrics(task)
    if length := length_of(task):
        return Metric(str(length), found[0].filter)
    shares = [metric for metric in found if metric.name in SHARES or metric.name.endswith("_acc")]
    chosen = next((metric for metric in shares if metric.name == "acc"), shares[0] if shares else None)
    if chosen is None:
        names = ", ".join(metric.name for metric in found)
        raise QbenchError(
            f"measure.tasks.names: {task.task_name} has no accuracy or exact match (its metrics: {names}); leave it out"
        )
    return chosen


def generates(task: Task) -> bool:
    """Whether a task is scored by what a model generates."""
    return bool(task.OUTPUT_TYPE == GENERATES)


def _check(task: Task, config: TasksConfig) -> None:
    name = str(task.task_name)
    scored_by(task)
    _check_code(name, {"unsafe_code": task.config.unsafe_code})
    if generates(task):
        try:
            limits_of(task.config.generation_kwargs or {})
        except QbenchError as error:
            raise QbenchError(f"measure.tasks.names: {name}: {error}. Leave it out") from error
    shots = task.config.num_fewshot if config.num_fewshot is None else config.num_fewshot
    # A task file that sets 0 is obeyed, whatever is asked for; a question is never an example of its own.
    drawn = (shots or 0) + draws_from_questions(task)
    if shots and task.config.num_fewshot != 0 and examples(task) < drawn:
        raise QbenchError(
            f"{name}: {examples(task)} rows to choose examples from, but {shots}-shot takes {drawn}; "
            "lower measure.tasks.num_fewshot"
        )


def _local(name: str, own: dict[str, Any], path: Path, config: TasksConfig) -> dict[str, Any]:
    """What changes in the task file `own`: the data set, and splits that there are no rows of."""
    asked = own.get("test_split") or own.get("validation_split")
    files = _files(path) if path.is_dir() else {str(asked): [path]}
    loaders = {LOADERS.get(file.suffix) for found in files.values() for file in found}
    loader = loaders.pop() if len(loaders) == 1 else None
    if loader is None:
        raise QbenchError(f"measure.tasks.data: {path}: give files of one format, of {', '.join(LOADERS)}")
    if asked not in files:
        raise QbenchError(
            f"measure.tasks.data: {path} holds no {asked}, where {name} has its questions (it holds: {_list(files)})"
        )
    shots = own.get("num_fewshot") if config.num_fewshot is None else config.num_fewshot
    source = next((own[key] for key in ("fewshot_split", "training_split") if own.get(key)), None)
    if shots and source and source not in files:
        raise QbenchError(
            f"measure.tasks.data: {path} holds no {source}, where {name} has its examples (it holds: {_list(files)}); "
            "add it, or set measure.tasks.num_fewshot to 0"
        )
    return {
        "task": name,
        "dataset_path": loader,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: [str(file) for file in found] for split, found in files.items()}},
        **{key: None for key in SPLITS if own.get(key) and own[key] not in files},
    }


def _files(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by split: `test.jsonl`, or `test-00000-of-00001.parquet` as the hub names them."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in LOADERS:
            files.setdefault(path.name.partition(".")[0].partition("-")[0], []).append(path)
    return files


def _list(files: dict[str, list[Path]]) -> str:
    return ", ".join(files) or "no data file"
