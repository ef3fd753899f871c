"""Accuracy by any task of lm-evaluation-harness that compares log-likelihoods: ARC, HellaSwag, PIQA, TruthfulQA, …"""

from __future__ import annotations

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from qbench.config import TasksConfig
from qbench.engine.base import Capability, Engine
from qbench.errors import QbenchError
from qbench.measure.base import Context
from qbench.measure.lm_eval.harness import Evaluation, evaluate, quiet_harness
from qbench.measure.lm_eval.journal import Journal
from qbench.measure.lm_eval.tasks_data import load_tasks
from qbench.records.rows import AccuracyRow

NEEDS = frozenset({Capability.LOGLIKELIHOODS})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: TasksConfig, context: Context) -> None:
    """Emit a row for every task, one for each of its tasks if it is a tag or group; a name when all before it are done.

    Raises:
        QbenchError: the model has no tokenizer, its logits are NaN, or a task cannot be measured (see `load_tasks`).
    """
    if Capability.TEXT not in engine.can:
        raise QbenchError("measure.tasks: the model has no tokenizer; choose one that has, or remove tasks")
    context.progress("tasks, reading their index", 0, 1)
    with quiet_harness():
        # All that lm-evaluation-harness ships, 13,000 files: this takes some seconds.
        manager = TaskManager()
        chosen = load_tasks(manager, config)
        for name, tasks in chosen.items():
            if not context.wants(name):
                continue
            journal = Journal(context.journal and context.journal.with_suffix(f".{name}.jsonl"))
            found = evaluate(
                engine,
                tasks,
                what=name,
                share=config.engine == "prefix",
                batch_size=config.batch_size,
                num_fewshot=config.num_fewshot,
                limit=config.limit,
                manager=manager,
                progress=context.progress,
                journal=journal,
            )
            wall_s = journal.elapsed_s
            context.emit(*(_row(name, task, found, config, context, wall_s) for task in tasks), unit=name)


def _row(name: str, task: Task, found: Evaluation, config: TasksConfig, context: Context, wall_s: float) -> AccuracyRow:
    own = str(task.task_name)
    return AccuracyRow(
        **context.identity,
        task=name,
        subject="" if own == name else own,
        num_fewshot=task.config.num_fewshot,
        partial=config.limit is not None,
        wall_s=wall_s,
        **found.columns(own),
    )
