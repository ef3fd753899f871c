"""Evaluating tasks of lm-evaluation-harness: its tasks, prompts, few-shot examples and metrics on the loaded model."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lm_eval
from lm_eval.api.model import CacheHook
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from qbench.compat.lm_eval import Metric, questions, without_environment
from qbench.engine.base import Engine, TokenCount
from qbench.errors import NotFiniteError
from qbench.measure.lm_eval.adapter import EngineLM
from qbench.measure.lm_eval.journal import Journal

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5

ACC = Metric("acc", "none")
"""That of tasks that compare log-likelihoods."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What lm-evaluation-harness found, and how many tokens the model read for it."""

    results: dict[str, Any]
    """`lm_eval.simple_evaluate`'s own."""
    forward_tokens: TokenCount
    stock_tokens: TokenCount
    """What its own model code would have read."""
    shared: bool | None
    """Whether what prompts have in common was read once."""
    truncated: frozenset[str]
    """Prompts that lost their beginning."""

    def samples(self, task: str, scored: Metric = ACC) -> list[dict[str, Any]]:
        """Every question of a task as lm-evaluation-harness keeps it, with the answer that the metric looks at."""
        return [sample for sample in self.results["samples"][task] if sample["filter"] == scored.filter]

    def columns(self, task: str, scored: Metric = ACC) -> dict[str, Any]:
        """What an `AccuracyRow` says of a task's answers and tokens.

        A question's score is 1 or 0, in some tasks something between. stderr = s ÷ √n, with s the scores' sample
        deviation (`lm_eval.api.metrics.mean_stderr`); None for one question.
        """
        scores = [float(sample[scored.name]) for sample in self.samples(task, scored)]
        return {
            "n": len(scores),
            "correct": int(sum(scores)) if all(score in (0, 1) for score in scores) else None,
            "accuracy": self.results["results"][task][str(scored)],
            "metric": str(scored),
            "stderr": statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
            "forward_tokens": self.forward_tokens.read,
            "stock_tokens": self.stock_tokens.read,
            "asked_sha256": self._asked(task),
            "shared_prefixes": self.shared,
            "truncated": sum(
                any(arguments[0] in self.truncated for arguments in sample["arguments"])
                for sample in self.samples(task, scored)
            ),
        }

    def _asked(self, task: str) -> str:
        """A hash of a task's prompts, continuations and targets: what was asked, wherever its rows came from."""
        digest = hashlib.sha256()
        samples = {int(sample["doc_id"]): sample for sample in self.results["samples"][task]}
        for _, sample in sorted(samples.items()):
            digest.update(json.dumps([sample["arguments"], sample["target"]], default=str).encode())
        return digest.hexdigest()


def evaluate(
    engine: Engine,
    tasks: Sequence[ConfigurableTask],
    *,
    what: str,
    share: bool,
    batch_size: int,
    num_fewshot: int | None,
    limit: int | None,
    manager: TaskManager,
    progress: Callable[[str, int, int], None],
    journal: Journal | None = None,
) -> Evaluation:
    """Put the questions of `tasks` to the model.

    Args:
        what: the name under which progress and errors speak of the tasks.
        share: whether what prompts have in common may be read once.
        num_fewshot: examples before a question; what each task asks for if None.
        limit: questions a task; all if None.
        manager: has to know nothing of the tasks, which are loaded.
        journal: where answered batches are kept until the evaluation is done.

    Raises:
        NotFiniteError: a log-probability is NaN or infinite.
        QbenchError: a continuation cannot be scored, or generation leaves no room for a prompt.
    """
    lm = EngineLM(engine, batch_size, share=share, journal=journal)
    lm.set_cache_hook(Watch(what, tasks, limit, progress))
    with without_environment():
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            # No standard errors: those of metrics that are no means take a thousand evaluations each.
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
        )
    read, stock = lm.forward_tokens, lm.stock_tokens
    log.info("%s: %d tokens read (%d with padding) instead of %d (%d)", what, *_pair(read), *_pair(stock))
    return Evaluation(results, read, stock, lm.shared, frozenset(lm.truncated))


class Watch(CacheHook):  # type: ignore[misc]  # lm_eval has no types
    """Sees every answered request, where lm-evaluation-harness would cache it: reports progress, refuses NaN."""

    def __init__(
        self,
        what: str,
        tasks: Sequence[ConfigurableTask],
        limit: int | None,
        progress: Callable[[str, int, int], None],
    ) -> None:
        super().__init__(None)
        self._what = what
        self._tasks = tasks
        self._progress = progress
        sizes = map(questions, tasks)
        self._questions = sum(min(size, limit or size) for size in sizes)
        self._requests = 0
        self._answered = 0
        self._reported = 0
        self._reported_at = time.monotonic()
        progress(what, 0, self._questions)

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """One request is answered.

        Raises:
            NotFiniteError: its log-probability is NaN or infinite.
        """
        if attr == "loglikelihood" and not math.isfinite(res[0]):
            raise NotFiniteError(f"{self._what}, first in {self._task_of(req)}")
        # Requests are made after the watch begins; questions may differ in their number of choices.
        self._requests = self._requests or sum(i.repeats for task in self._tasks for i in task.instances)
        self._answered += 1
        done = self._answered * self._questions // self._requests
        now = time.monotonic()
        if done > self._reported and (done == self._questions or now - self._reported_at >= REPORT_EVERY_S):
            self._reported, self._reported_at = done, now
            self._progress(self._what, done, self._questions)

    def _task_of(self, request: Iterable[Any]) -> str:
        return next(str(task.task_name) for task in self._tasks if any(i.args == request for i in task.instances))


@contextmanager
def quiet_harness() -> Iterator[None]:
    """lm-evaluation-harness logs each task's every setting; let through only what is wrong."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pair(count: TokenCount) -> tuple[int, int]:
    return count.read, count.padded
