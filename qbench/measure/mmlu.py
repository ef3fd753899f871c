"""MMLU by lm-evaluation-harness: its tasks, prompts, few-shot examples and metric.

A question is four requests, the log-probability of each answer letter after the same prompt, which one forward
answers; the answer is the letter with the greatest log-probability.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lm_eval.api.task import ConfigurableTask

from qbench.config import MMLUConfig
from qbench.engine.base import Capability, Engine
from qbench.errors import QbenchError
from qbench.measure.base import Context
from qbench.measure.lm_eval.harness import Evaluation, evaluate, quiet_harness
from qbench.measure.lm_eval.journal import Journal
from qbench.measure.lm_eval.mmlu_data import LETTERS, PREFIX, load_tasks, subject_of, task_manager
from qbench.records.answers import write_answers
from qbench.records.rows import AccuracyRow

NEEDS = frozenset({Capability.LOGLIKELIHOODS})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: MMLUConfig, context: Context) -> None:
    """Evaluate the model, write the answers to `context.answers` and emit a row a subject.

    Raises:
        QbenchError: the questions cannot be read (see `load_tasks`), the model has no tokenizer, or its logits are NaN.
    """
    if Capability.TEXT not in engine.can:
        raise QbenchError("measure.mmlu: the model has no tokenizer; choose one that has, or remove mmlu")
    journal = Journal(context.journal)
    with quiet_harness():
        tasks = load_tasks(config)
        found = evaluate(
            engine,
            tasks,
            what="mmlu",
            share=config.engine == "prefix",
            batch_size=config.batch_size,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            manager=task_manager(),
            progress=context.progress,
            journal=journal,
        )
    _write_answers(context.answers / f"{context.identity['label']}.parquet", found.results["samples"])
    wall_s = journal.elapsed_s
    for task in tasks:
        context.emit(_row(task, found, config, context, wall_s))


def _row(task: ConfigurableTask, found: Evaluation, config: MMLUConfig, context: Context, wall_s: float) -> AccuracyRow:
    return AccuracyRow(
        **context.identity,
        task="mmlu",
        subject=subject_of(task),
        num_fewshot=config.num_fewshot,
        partial=config.partial,
        wall_s=wall_s,
        **found.columns(task.task_name),
    )


def _write_answers(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    """A row a question, in the order of the test set; written to a temporary name and renamed."""
    rows = []
    for name, answered in sorted(samples.items()):
        for sample in answered:
            logprobs = [logprob for logprob, _is_greedy in sample["filtered_resps"]]
            rows.append(
                {
                    "subject": name.removeprefix(PREFIX),
                    "question_id": sample["doc_id"],
                    **{f"logprob_{letter.lower()}": p for letter, p in zip(LETTERS, logprobs, strict=True)},
                    "predicted": int(np.argmax(logprobs)),
                    "gold": sample["target"],
                }
            )
    write_answers(path, pd.DataFrame(rows))
