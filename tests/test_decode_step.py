"""Bytes that a decode step reads, the limit they set, and from which batch size on a cell is slower, all by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import QuantizedLayer

from qbench.analysis.decode_step import DecodeStep, decode_steps
from qbench.analysis.summary import summarize
from qbench.errors import QbenchError
from qbench.machine.bandwidth import Bandwidth
from qbench.model.kv_cache import RESIDUAL, attended_tokens, recent_tokens
from qbench.records.run import Run, read_run
from qbench.show.phrases import crossover_words, crossovers
from tests.support.frames import edited
from tests.support.made_up_run import cell, five_cells, made_up_run, trial, trials

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
TEN_GB = Bandwidth(10e9, "given")

TOKEN = 2 * 22 * 4 * 64 * 2
"""TinyLlama's keys and values of a token: 22 layers, 4 heads of 64 channels, two bytes."""
WEIGHTS = 2_200_097_024 - 32_000 * 2048 * 2
"""Its weights in 16 bit, and frequencies, without the input embedding."""


@pytest.fixture(scope="module")
def tinyllama() -> Run:
    """128 prompt and 16 new tokens; every trial as if it had decoded 64 tokens a second."""
    return edited(read_run(PUBLISHED / "tinyllama-shape-xeon-2core"), "throughput", decode_tokens_per_s=64.0)


def test_figures_of_a_step_follow_from_bytes_and_seconds() -> None:
    step = DecodeStep(batch_size=8, weight_bytes=6 * 10**9, cache_bytes=2e9, seconds=1.6, bytes_per_s=10e9)
    assert step.read_bytes == 8e9
    assert step.read_bytes_per_s == pytest.approx(5e9)
    assert step.limit_s == pytest.approx(0.8)
    assert step.limit_tokens_per_s == pytest.approx(10)
    assert step.times_limit == pytest.approx(2)
    unknown = replace(step, bytes_per_s=None)
    assert (unknown.limit_s, unknown.limit_tokens_per_s, unknown.times_limit) == (None, None, None)
    assert unknown.read_bytes_per_s == step.read_bytes_per_s


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_a_step_reads_all_weights_and_the_cache_of_every_sequence(tinyllama: Run, batch_size: int) -> None:
    step = decode_steps(tinyllama, TEN_GB)["fp16", batch_size]
    assert step.weight_bytes == WEIGHTS
    # 15 steps see 129 to 143 tokens, 136 on average.
    assert step.cache_bytes == batch_size * 136 * TOKEN
    assert step.seconds == batch_size / 64
    assert step.limit_s == pytest.approx((WEIGHTS + batch_size * 136 * TOKEN) / 10e9)
    assert step.times_limit == pytest.approx(batch_size / 64 * 10e9 / (WEIGHTS + batch_size * 136 * TOKEN))


def test_every_cell_that_was_timed_has_a_step_and_bytes_that_were_counted(tinyllama: Run) -> None:
    steps = decode_steps(tinyllama, None)
    assert set(steps) == {(label, size) for label in tinyllama.record.order for size in (1, 8, 32)}
    for one in tinyllama.cells:
        assert one.weight_bytes
        assert steps[one.label, 1].weight_bytes == one.weight_bytes - 32_000 * 2048 * 2
        assert steps[one.label, 1].bytes_per_s is None
    uncounted = edited(tinyllama, "cells", weight_bytes=None)
    for key, step in decode_steps(uncounted, None).items():
        assert step.weight_bytes == pytest.approx(steps[key].weight_bytes, rel=0.001)


def test_a_tied_embedding_is_read_whole() -> None:
    smoke = read_run(PUBLISHED / "smoke-xeon-2core")
    assert decode_steps(smoke, None)["fp16", 1].weight_bytes == 8_393_472


def test_the_cache_of_a_graph_is_read_to_its_end(tinyllama: Run) -> None:
    graph = decode_steps(edited(tinyllama, "throughput", decode_mode="graph"), None)
    assert graph["int4", 8].cache_bytes == 8 * 144 * TOKEN


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.5), ("int4", 4.5)])
def test_a_quantized_cache_is_read_in_its_bits_but_for_the_last_tokens(tinyllama: Run, kind: str, bits: float) -> None:
    step = decode_steps(edited(tinyllama, "throughput", kv_cache=kind), None)["int4", 8]
    # The 15 steps see 1 to 15 new tokens in 16 bit, 8 on average.
    assert step.cache_bytes == pytest.approx(8 * TOKEN * (128 * bits / 16 + 8))


def test_failed_trials_and_failed_cells_have_no_step(tinyllama: Run) -> None:
    failed = ["oom" if trial.batch_size == 32 else "ok" for trial in tinyllama.throughput]
    steps = decode_steps(edited(tinyllama, "throughput", status=failed), None)
    assert {size for _, size in steps} == {1, 8}
    kernels = [None if cell.label == "awq" else cell.kernel for cell in tinyllama.cells]
    assert ("awq", 1) not in decode_steps(edited(tinyllama, "cells", kernel=kernels), None)


def test_nothing_is_said_of_a_model_that_is_not_known(tinyllama: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    model = {"path": str(tmp_path), "weights": "random"}
    record = tinyllama.record.model_copy(update={"config": {**tinyllama.record.config, "model": model}})
    with pytest.raises(QbenchError, match="gpt2"):
        decode_steps(replace(tinyllama, record=record), None)


def test_attended_tokens_are_the_mean_over_the_steps() -> None:
    for prompt, new_tokens in ((1920, 128), (1, 2), (100, 7)):
        steps = [prompt + k for k in range(1, new_tokens)]
        assert attended_tokens(prompt, new_tokens) == pytest.approx(sum(steps) / len(steps))
        assert attended_tokens(prompt, new_tokens, "graph") == prompt + new_tokens
        assert attended_tokens(prompt, new_tokens, "compiled") == prompt + new_tokens


class Kept(QuantizedLayer):
    """transformers' cache layer, with the rounding left out."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("new_tokens", [2, 16, 128, 129, 130, 300])
def test_recent_tokens_are_those_that_transformers_cache_keeps(new_tokens: int) -> None:
    layer, seen = Kept(residual_length=RESIDUAL), []
    layer.update(torch.zeros(1, 1, 40, 2), torch.zeros(1, 1, 40, 2))
    for _ in range(new_tokens - 1):
        kept = layer.keys.shape[-2] if layer.keys.dim() == 4 else 0
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        seen.append(kept + 1)
    assert recent_tokens(new_tokens) == pytest.approx(sum(seen) / len(seen))


def test_recent_tokens_begin_again_after_128() -> None:
    assert recent_tokens(2) == 1
    assert recent_tokens(257) == 64.5
    assert recent_tokens(131) == pytest.approx((128 * 64.5 + 1 + 2) / 130)


def compared(own: Mapping[int, Sequence[float]], reference: Mapping[int, Sequence[float]]) -> Any:
    """The summary of a cell with these speeds by batch size, and of FP16 with those."""
    rows = [cell("fp16"), cell("int4")]
    for label, speeds in (("fp16", reference), ("int4", own)):
        for size, values in speeds.items():
            rows += trials(label, None, size, values) if values else [trial(label, None, size, status="oom")]
    return summarize(made_up_run(rows, batch_sizes=sorted({*own, *reference}))).cell("int4")


FP16 = {1: [10.0, 10.1], 8: [80.0, 80.1], 32: [300.0, 300.1]}


@pytest.mark.parametrize(
    ("own", "size", "words"),
    [
        ({1: [30, 31], 8: [90, 91], 32: [200, 201]}, 32, "slower than FP16 from batch 32 on"),
        ({1: [30, 31], 8: [70, 71], 32: [200, 201]}, 8, "slower than FP16 from batch 8 on"),
        ({1: [5, 5.1], 8: [70, 71], 32: [200, 201]}, 1, "slower than FP16 from batch 1 on"),
        # Slower at 8 and again faster at 32: there is no batch size from which on it is slower.
        ({1: [30], 8: [70], 32: [400]}, None, "not slower than FP16 at batch 32, the largest that both ran"),
        # Where one of the two has no trial, nothing is compared.
        ({1: [30, 31], 8: [70, 71], 32: []}, 8, "slower than FP16 from batch 8 on"),
        ({1: [30, 31], 32: [200, 201]}, 32, "slower than FP16 from batch 32 on"),
        ({1: [30, 31], 8: [90, 91]}, None, "not slower than FP16 at batch 8, the largest that both ran"),
        ({1: [], 8: [], 32: []}, None, ""),
        # 79.5 is below 80.05, and its trials are 20 apart.
        ({1: [30, 31], 8: [70, 90], 32: [200, 201]}, 8, "slower than FP16 from batch 8 on (inconclusive at batch 8)"),
    ],
)  # fmt: skip
def test_a_crossover_is_where_a_cell_stays_slower(own: dict[int, list[float]], size: int | None, words: str) -> None:
    found = compared(own, FP16)
    assert found.slower_from == size
    assert crossover_words(found, "FP16") == words


def test_batches_that_the_reference_did_not_run_say_nothing() -> None:
    found = compared({1: [30, 31], 8: [70, 71], 32: [20, 21]}, {**FP16, 32: []})
    assert found.slower_from == 8
    assert [speed.batch_size for speed in found.compared] == [1, 8]


def test_every_cell_but_the_reference_has_a_line() -> None:
    found = summarize(made_up_run(five_cells()))
    assert crossovers(found.cells, "FP16") == [
        "INT4: not slower than FP16 at batch 8, the largest that both ran",
        "NF4: slower than FP16 from batch 1 on",
        "GPTQ: not slower than FP16 at batch 8, the largest that both ran",
    ]
