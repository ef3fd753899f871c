"""Accuracy by any task of lm-evaluation-harness: ARC, HellaSwag, PIQA by log-likelihoods, GSM8K, IFEval by generation.

What a model generates is compared as text, by the task's own filters and metrics; none of it is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from qbench.config import TasksConfig, needles
from qbench.engine.base import Capability, Engine
from qbench.errors import QbenchError
from qbench.measure.base import Context
from qbench.measure.lm_eval.adapter import DEFAULT_CONTEXT
from qbench.measure.lm_eval.harness import Evaluation, evaluate, quiet_harness
from qbench.measure.lm_eval.journal import Journal
from qbench.measure.lm_eval.needles import Source, load
from qbench.measure.lm_eval.tasks_data import generates, load_tasks, scored_by, task_manager
from qbench.records.answers import QUESTION, task_file, write_answers
from qbench.records.rows import AccuracyRow

NEEDS: frozenset[Capability] = frozenset()
"""Capabilities without which a cell's measure is unsupported: some tasks compare log-likelihoods, others generate."""


def measure(engine: Engine, config: TasksConfig, context: Context) -> None:
    """Emit a row for every unit of `config`, one for each of its tasks if it is a tag or group, when it is done.

    The answers to a unit's questions are in `context.answers` then, see `qbench.records.answers.task_file`.

    Raises:
        QbenchError: the model has no tokenizer, its logits are NaN, a task cannot be measured (see `load_tasks` and
            `needles.load`), a length exceeds the model's context, or the engine cannot do what a task asks for.
    """
    if Capability.TEXT not in engine.can:
        raise QbenchError("measure.tasks: the model has no tokenizer; choose one that has, or remove tasks")
    context.progress("tasks, reading their index", 0, 1)
    with quiet_harness():
        manager = task_manager(config.stored)
        stored = load_tasks(manager, config)
        for unit in config.units():
            if context.wants(unit):
                _measure(unit, stored.get(unit) or [_needle(engine, unit, context)], engine, config, context, manager)


def _measure(
    unit: str, tasks: list[Task], engine: Engine, config: TasksConfig, context: Context, manager: TaskManager
) -> None:
    _check_engine(engine, unit, tasks)
    journal = Journal(context.journal and context.journal.with_suffix(f".{unit}.jsonl"))
    found = evaluate(
        engine,
        tasks,
        what=unit,
        share=config.engine == "prefix",
        batch_size=config.batch_size,
        num_fewshot=config.num_fewshot if needles.split(unit)[1] is None else None,
        limit=config.limit,
        manager=manager,
        progress=context.progress,
        journal=journal,
    )
    wall_s = journal.elapsed_s
    _write_answers(context.answers / task_file(context.identity["label"], unit), tasks, found)
    context.emit(*(_row(unit, task, found, config, context, wall_s) for task in tasks), unit=unit)


def _needle(engine: Engine, unit: str, context: Context) -> Task:
    """The task of a unit such as `niah_single_1@4096`."""
    name, tokens = needles.split(unit)
    assert tokens is not None
    most = engine.about.context or DEFAULT_CONTEXT
    if tokens > most:
        raise QbenchError(
            f"measure.tasks.context_lengths: {tokens} tokens, more than the model's context of {most}; ask for {most} "
            "or fewer"
        )
    if context.folder is None:
        raise QbenchError(f"{unit}: there is no folder with the model's tokenizer")
    context.progress(f"{unit}, making its prompts", 0, 1)
    return load(name, tokens, Source(context.folder, context.seed, context.trust_remote_code))


def _check_engine(engine: Engine, name: str, tasks: list[Task]) -> None:
    """Refuse a name whose tasks ask for what the engine cannot do; other names may go."""
    for asked, needed, words in (
        (any(map(generates, tasks)), Capability.GENERATE, "generates"),
        (not all(map(generates, tasks)), Capability.LOGLIKELIHOODS, "gives log-probabilities of a prompt"),
    ):
        if asked and needed not in engine.can:
            raise QbenchError(f"measure.tasks.names: {name} takes an engine that {words}; leave it out")


def _row(unit: str, task: Task, found: Evaluation, config: TasksConfig, context: Context, wall_s: float) -> AccuracyRow:
    own = str(task.task_name)
    return AccuracyRow(
        **context.identity,
        task=unit,
        subject="" if own == needles.split(unit)[0] else own,
        num_fewshot=task.config.num_fewshot,
        partial=config.limit is not None,
        wall_s=wall_s,
        **found.columns(own, scored_by(task)),
    )


def _write_answers(path: Path, tasks: list[Task], found: Evaluation) -> None:
    """A row a question, in the order of its task: what it scores, and the text that a model generated."""
    rows = [_answer(task, sample) for task in tasks for sample in found.samples(task.task_name, scored_by(task))]
    write_answers(path, pd.DataFrame(rows).sort_values(QUESTION, kind="stable"))


def _answer(task: Task, sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "subject": str(task.task_name),
        "question_id": int(sample["doc_id"]),
        "score": float(sample[scored_by(task).name]),
        "target": str(sample["target"]),
        "text": str(sample["resps"][0][0]) if generates(task) else None,
        "answer": str(sample["filtered_resps"][0]) if generates(task) else None,
    }
