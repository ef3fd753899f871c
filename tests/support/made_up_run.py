"""A run built by hand from row types. Its figures are made up, so that tests can tell them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from qbench.machine.environment import GPU, Environment
from qbench.records.answers import Answers
from qbench.records.rows import (
    TABLES,
    AccuracyRow,
    CellRow,
    NoiseRow,
    PerplexityRow,
    Row,
    SustainedRow,
    ThroughputRow,
)
from qbench.records.run import Run, RunRecord

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
GIB = 2**30


def environment(*gpus: str) -> Environment:
    return Environment(
        cpu="AMD EPYC 7R13 Processor",
        cores=16,
        memory_bytes=64 * GIB,
        gpus=tuple(GPU(name=name, memory_bytes=80 * GIB) for name in gpus),
        driver=None,
        os="Linux",
        python="3.12",
        versions={},
        git_commit=None,
        git_dirty=None,
    )


def identity(label: str, backend: str | None = None) -> dict[str, str]:
    return {"run": "made-up", "model": MODEL, "backend": backend or label, "label": label}


def cell(label: str, backend: str | None = None, *, status: str = "ok", **fields: Any) -> CellRow:
    bits = 16 if (backend or label) == "fp16" else 4
    return CellRow.model_validate({**identity(label, backend), "bits": bits, "status": status, **fields})


def trials(label: str, backend: str | None, batch_size: int, speeds: Sequence[float]) -> list[Row]:
    return [trial(label, backend, batch_size, trial=i, decode_tokens_per_s=speed) for i, speed in enumerate(speeds)]


def trial(
    label: str, backend: str | None, batch_size: int, *, trial: int = 0, status: str = "ok", **fields: Any
) -> ThroughputRow:
    settings = {"prompt_tokens": 1920, "new_tokens": 128, "decode_mode": "graph"}
    own = {"batch_size": batch_size, "trial": trial, "status": status}
    return ThroughputRow.model_validate({**identity(label, backend), **settings, **own, **fields})


def window(label: str, t_s: float, speed: float, *, backend: str | None = None, **fields: Any) -> SustainedRow:
    settings = {"batch_size": 1, "prompt_tokens": 1920, "new_tokens": 128, "decode_mode": "graph", "generations": 3}
    own = {"t_s": t_s, "tokens_per_s": speed}
    return SustainedRow.model_validate({**identity(label, backend), **settings, **own, **fields})


def subject(
    label: str, backend: str | None, name: str, correct: int, n: int, *, partial: bool = False, task: str = "mmlu"
) -> AccuracyRow:
    return AccuracyRow(
        **identity(label, backend),
        task=task,
        subject=name,
        num_fewshot=5,
        n=n,
        correct=correct,
        accuracy=correct / n,
        partial=partial,
    )


def text(label: str, perplexity: float, *, partial: bool = False, **fields: Any) -> PerplexityRow:
    figures = {"perplexity": perplexity, "nll_mean": math.log(perplexity), **fields}
    fixed = {"dataset": "wikitext2", "window": 2048, "n_tokens": 288_627, "wall_s": 60}
    return PerplexityRow.model_validate({**identity(label), **fixed, **figures, "partial": partial})


def noise(label: str, n: int, right_to_wrong: int, wrong_to_right: int, *, partial: bool = False) -> NoiseRow:
    return NoiseRow(
        **identity(label),
        batch_size=8,
        repeat_batch_size=4,
        n=n,
        changed_answers=right_to_wrong + wrong_to_right,
        right_to_wrong=right_to_wrong,
        wrong_to_right=wrong_to_right,
        accuracy_delta=(wrong_to_right - right_to_wrong) / n,
        logprob_delta_max=0.03125,
        partial=partial,
        wall_s=1.0,
    )


def answers(right: Sequence[bool] | np.ndarray, name: str = "all") -> dict[tuple[str, int], bool]:
    """Whether a cell is right, question by question, of one subject."""
    return {(name, number): bool(one) for number, one in enumerate(right)}


def flipped(correct: int, n: int, right_to_wrong: int, wrong_to_right: int) -> dict[tuple[str, int], bool]:
    """The answers of a cell that differs so from one that is right on the first `correct` of `n` questions."""
    right = np.arange(n) < correct
    right[:right_to_wrong] = False
    right[n - wrong_to_right :] = True
    return answers(right)


FIVE_ANSWERS = {
    "fp16": flipped(9304, 14_042, 0, 0),
    "int4": flipped(9304, 14_042, 382, 200),
    "nf4": flipped(9304, 14_042, 403, 200),
    "gptq": flipped(9304, 14_042, 454, 200),
}
"""Answers that fit `five_cells`: 9304 − 382 + 200 = 9122, and so on."""


def made_up_run(
    rows: Sequence[Row],
    *,
    answers: Mapping[str, Answers] | None = None,
    batch_sizes: Sequence[int] | None = (1, 8, 32),
    mmlu: dict[str, Any] | None = None,
    model: str = MODEL,
    gpus: Sequence[str] = ("NVIDIA A100-SXM4-80GB",),
) -> Run:
    record = RunRecord(
        name="made-up",
        model=model,
        command="qbench run",
        config={
            "dtype": "float16",
            "measure": {
                "memory": {"batch_size": 1, "seq_len": 2048},
                "throughput": batch_sizes and {"batch_sizes": list(batch_sizes)},
                "mmlu": mmlu,
            },
        },
        model_fingerprint="0",
        environment=environment(*gpus),
        started=datetime(2026, 10, 5, 23, 30, tzinfo=UTC),
    )
    tables: dict[str, Any] = {
        name: tuple(row for row in rows if isinstance(row, kind)) for name, kind in TABLES.items()
    }
    return Run(folder=Path("results/made-up"), record=record, **tables, answers=dict(answers or {}))


def measured(
    label: str,
    backend: str,
    gib: float,
    speeds: dict[int, Sequence[float]],
    correct: int,
    n: int = 14_042,
    *,
    partial: bool = False,
) -> list[Row]:
    """All rows of a cell that is ok."""
    return [
        cell(label, backend, peak_memory_bytes=round(gib * GIB), dtype="float16"),
        *(row for size, values in speeds.items() for row in trials(label, backend, size, values)),
        subject(label, backend, "all", correct, n, partial=partial),
    ]


def five_cells(*, partial: bool = False) -> list[Row]:
    """The five kinds: fp16 has no room at batch 32, awq failed as a whole."""
    n = 285 if partial else 14_042
    share = n / 14_042
    return [
        *measured(
            "fp16", "fp16", 15.93, {1: [41.2, 41.9, 41.5], 8: [310, 318, 305]}, int(9304 * share), n, partial=partial
        ),
        trial("fp16", "fp16", 32, status="oom", error="CUDA out of memory"),
        *measured(
            "int4", "int4", 5.74, {1: [98, 101, 92], 8: [512, 530, 541], 32: [1502, 1490, 1511]},
            int(9122 * share), n, partial=partial,
        ),
        *measured(
            "nf4", "nf4", 6.12, {1: [38, 39, 38.5], 8: [240, 251, 249], 32: [910, 880, 905]},
            int(9101 * share), n, partial=partial,
        ),
        cell("awq", status="unavailable", error="no module named gptqmodel"),
        *measured(
            "gptq", "gptq", 5.91, {1: [120, 124, 118], 8: [601, 640, 620], 32: [1702, 1710, 1650]},
            int(9050 * share), n, partial=partial,
        ),
    ]  # fmt: skip


def eight_cells() -> list[Row]:
    """Several cells of a kind, with labels of every length, close together."""
    cells = [
        ("fp16", "fp16", 15.93, 9304),
        ("int4", "int4", 5.74, 9122),
        ("int4-group-32", "int4", 6.31, 9170),
        ("int4-one-scale-for-each-row-of-the-matrix", "int4", 5.61, 8720),
        ("nf4-double-quant", "nf4", 5.69, 9101),
        ("awq", "awq", 5.80, 9130),
        ("gptq", "gptq", 5.75, 9050),
        ("gptq-desc-act-group-size-128-symmetric", "gptq", 5.78, 9111),
    ]
    return [
        row
        for i, (label, kind, gib, correct) in enumerate(cells)
        for row in measured(label, kind, gib, {1: [40 + i, 44 + i], 8: [330 + i, 300], 32: [9000, 12000]}, correct)
    ]


def sustained_cells() -> list[Row]:
    """int4 loses a fifth within ten minutes, fp16 and a second int4 nothing."""
    rows: list[Row] = [cell("fp16"), cell("int4"), cell("awq", status="oom"), cell("int4-group-32", "int4")]
    for i in range(60):
        rows.append(window("fp16", 10 * (i + 1), 41.5, validity="foreign_load" if i == 30 else "ok"))
        rows.append(window("int4", 10 * (i + 1), 100 - min(i, 20), validity="throttled" if 10 < i < 20 else "ok"))
        rows.append(window("int4-group-32", 10 * (i + 1), 75 + i % 2, backend="int4"))
    return rows
