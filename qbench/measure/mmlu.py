"""MMLU by lm-evaluation-harness: its tasks, prompts, few-shot examples, metric and model wrapper.

A question is four requests, the log-probability of each answer letter after the same prompt. lm-evaluation-harness
groups them, so that a question costs one forward; the answer is the letter with the greatest log-probability.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
import torch
from lm_eval.api.model import CacheHook
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from qbench.backends.base import LoadedModel
from qbench.config import MMLUConfig
from qbench.errors import QbenchError
from qbench.measure.base import Context
from qbench.measure.mmlu_data import LETTERS, PREFIX, load_tasks, subject_of, task_manager
from qbench.results import AccuracyRow

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5


def measure(loaded: LoadedModel, config: MMLUConfig, context: Context) -> None:
    """Evaluate the model, write the answers to `context.answers` and emit a row a subject.

    Raises:
        QbenchError: the questions cannot be read (see `load_tasks`), the model has no tokenizer, or its logits are NaN.
    """
    if loaded.tokenizer is None:
        raise QbenchError("measure.mmlu: the model has no tokenizer; choose one that has, or remove mmlu")
    start = time.perf_counter()
    with _quiet_harness():
        tasks = load_tasks(config)
        # A copy, because the wrapper gives a tokenizer without a padding token one.
        lm = HarnessModel(loaded, copy.deepcopy(loaded.tokenizer), config.batch_size)
        lm.set_cache_hook(Watch(tasks, config.limit, context.progress))
        results = _evaluate(lm, tasks, config)
    _write_answers(context.answers / f"{context.identity['label']}.parquet", results["samples"])
    wall_s = time.perf_counter() - start
    for task in tasks:
        context.emit(_row(task, results, config, context, wall_s))


class HarnessModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-evaluation-harness's wrapper around the loaded model, which it neither moves nor casts.

    Two things are computed once that it would compute many times: the logits only of positions that predict an answer
    (over a vocabulary of 128k, those of all positions of a batch are gigabytes), and a prompt's tokens once, not once
    for each letter. The log-softmax is taken in float32: rounded to 16 bits, letters that differ would tie.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Any, batch_size: int) -> None:
        super().__init__(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self._answer_tokens = 1
        # A prompt alternates with prompt + letter, so that two entries are enough.
        self._encode = functools.lru_cache(maxsize=2)(super().tok_encode)

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        """The wrapper's own tokens; the list is shared by the requests of a question."""
        tokens: list[int] = self._encode(string, **options)
        return tokens

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the wrapper does, without its progress bars."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        self._answer_tokens = max(len(answer) for _, _, answer in requests)
        # The last token of prompt + answer is only predicted, never read.
        longest = self.max_length + 1
        cut = sum(len(prompt) + len(answer) > longest for _, prompt, answer in requests)
        if cut:
            log.warning(
                "mmlu: %d of %d prompts exceed the model's %d tokens and lose their beginning",
                cut // len(LETTERS), len(requests) // len(LETTERS), self.max_length,
            )  # fmt: skip
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        return answers

    def _model_call(self, inps: torch.Tensor, **_encoder_decoder: Any) -> torch.Tensor:
        # Rows are padded with zeros on the right. Token 0 at a prompt's end would count as padding: more is kept then.
        padding = int((inps.flip(1).cumsum(1) == 0).sum(1).max())
        with torch.no_grad():
            output = self.model(inps, use_cache=False, logits_to_keep=padding + self._answer_tokens)
        logits: torch.Tensor = output.logits
        return logits


class Watch(CacheHook):  # type: ignore[misc]  # lm_eval has no types
    """Sees every answered request, where lm-evaluation-harness would cache it: reports progress, refuses NaN."""

    def __init__(
        self, tasks: list[ConfigurableTask], limit: int | None, progress: Callable[[str, int, int], None]
    ) -> None:
        super().__init__(None)
        self._tasks = tasks
        self._progress = progress
        self._requests = 0
        sizes = [len(task.eval_docs) for task in tasks]
        self._questions = sum(min(size, limit or size) for size in sizes)
        self._reported_at = time.monotonic()
        progress("mmlu", 0, self._questions)

    def add_partial(self, attr: str, req: Iterable[Any], res: tuple[float, bool]) -> None:
        """One request is answered.

        Raises:
            QbenchError: its log-probability is NaN.
        """
        if math.isnan(res[0]):
            raise QbenchError(
                f"mmlu: the model's logits are NaN, first seen in {self._subject(req)}: an answer would mean nothing. "
                "Try another dtype (float16 overflows in some models), or check the quantized weights."
            )
        self._requests += 1
        done, between = divmod(self._requests, len(LETTERS))
        now = time.monotonic()
        if not between and (done == self._questions or now - self._reported_at >= REPORT_EVERY_S):
            self._reported_at = now
            self._progress("mmlu", done, self._questions)

    def _subject(self, request: Iterable[Any]) -> str:
        return next(subject_of(task) for task in self._tasks if any(i.args == request for i in task.instances))


def _evaluate(lm: HarnessModel, tasks: list[ConfigurableTask], config: MMLUConfig) -> dict[str, Any]:
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        # Any positive number gives the closed form of a mean's standard error; 0 gives none at all.
        bootstrap_iters=1,
        log_samples=True,
        task_manager=task_manager(),
    )
    return results


def _row(
    task: ConfigurableTask, results: dict[str, Any], config: MMLUConfig, context: Context, wall_s: float
) -> AccuracyRow:
    name = task.task_name
    stderr = results["results"][name]["acc_stderr,none"]
    return AccuracyRow(
        **context.identity,
        task="mmlu",
        subject=subject_of(task),
        num_fewshot=config.num_fewshot,
        n=results["n-samples"][name]["effective"],
        correct=int(sum(sample["acc"] for sample in results["samples"][name])),
        accuracy=results["results"][name]["acc,none"],
        stderr=None if stderr == "N/A" else stderr,
        partial=config.partial,
        wall_s=wall_s,
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pd.DataFrame(rows).to_parquet(partial, index=False)
    partial.replace(path)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """lm-evaluation-harness logs each task's every setting; let through only what is wrong."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
