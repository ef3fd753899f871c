"""Generations after tokens that are in the cache already: the same tokens, rows, refusals and predicted memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from qbench import demo
from qbench.analysis.summary import summarize
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import RunConfig, ThroughputConfig
from qbench.engine.base import Capability
from qbench.engine.torch import decode
from qbench.engine.torch.decode import generate, make_decoder
from qbench.engine.torch.engine import TorchEngine, TorchSession
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.model import random_weights
from qbench.plan import forecast
from qbench.plan.cells import fit_lengths
from qbench.plan.memory import Prediction
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import ScatterChart
from qbench.show.report import speed_tables
from qbench.show.view.data import collect
from tests.support.architectures import architecture
from tests.support.frames import read_frames
from tests.support.made_up_run import cell, environment, made_up_run, trial
from tests.support.predictions import CPU, DIMENSIONS
from tests.support.runs import config, run
from tests.support.throughput import Script, measured
from tests.support.tiny_llama import options
from tests.support.tiny_variants import options as variant_options

DEPTH, PROMPT, NEW = 23, 7, 8
TOKENS = np.random.default_rng(3).integers(3, 512, size=(3, DEPTH + PROMPT))


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


@pytest.mark.parametrize("kind", ["eager", "graph"])
def test_a_filled_cache_changes_no_token(loaded: LoadedModel, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "FILL_TOKENS", 10)  # in three pieces
    decoder = make_decoder(loaded.model, kind, 3, DEPTH + PROMPT + NEW)
    whole = torch.from_numpy(TOKENS)
    expected = generate(decoder, whole, NEW).tokens
    for _ in range(2):  # a decoder forgets its last sequence
        found = generate(decoder, whole[:, DEPTH:], NEW, after=whole[:, :DEPTH])
        np.testing.assert_array_equal(found.tokens, expected)
    assert len(found.step_s) == NEW - 1


def test_every_depth_has_its_rows(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    make = TorchEngine.session

    def session(self: TorchEngine, batch_size: int, seq_len: int, **how: Any) -> TorchSession:
        found = make(self, batch_size, seq_len, **how)
        plain = found.generate

        def watched(prompts: Any, new_tokens: int, *, after: Any = None) -> Any:
            seen.append((seq_len, prompts.shape, None if after is None else after.shape))
            return plain(prompts, new_tokens, after=after)

        monkeypatch.setattr(found, "generate", watched)
        return found

    monkeypatch.setattr(TorchEngine, "session", session)
    rows = measured(loaded, Script(["ok"] * 4), tmp_path, depths=[0, 16], trials=2)
    assert [(row.depth, row.trial, row.prompt_tokens) for row in rows] == [(0, 0, 8), (0, 1, 8), (16, 0, 8), (16, 1, 8)]
    assert set(seen) == {(12, (2, 8), None), (28, (2, 8), (2, 16))}
    assert rows[2].prefill_tokens_per_s == pytest.approx(2 * 8 / (rows[2].ttft_s or 0))
    assert (rows[2].peak_memory_bytes or 0) > (rows[0].peak_memory_bytes or 0)


def test_what_does_not_fit_is_not_tried_at_greater_depths(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = TorchEngine.session

    def session(self: TorchEngine, batch_size: int, seq_len: int, **how: Any) -> TorchSession:
        if batch_size * seq_len > 60:
            raise MemoryError
        return make(self, batch_size, seq_len, **how)

    monkeypatch.setattr(TorchEngine, "session", session)
    rows = measured(loaded, Script(["ok"] * 9), tmp_path, batch_sizes=[1, 2, 3], depths=[0, 16, 32], trials=1)
    assert [(row.depth, row.batch_size, row.status) for row in rows] == [
        (0, 1, "ok"), (0, 2, "ok"), (0, 3, "ok"), (16, 1, "ok"), (16, 2, "ok"), (16, 3, "oom"), (32, 1, "ok"),
        (32, 2, "oom"), (32, 3, "oom"),
    ]  # fmt: skip
    assert rows[-1].error == "batch 2 did not fit at depth 32"


def test_an_engine_that_cannot_fill_a_cache_says_so_and_measures_the_rest(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "can", frozenset(Capability) - {Capability.DEPTH})
    timed = {"batch_sizes": [1], "seq_len": 12, "new_tokens": 4, "trials": 1, "depths": [0, 16], "starts": 2}
    settings = config(tiny_llama, [{"kind": "fp16"}], measure={"throughput": timed}, dtype="float32")
    folder, ok, _ = run(settings, tmp_path)
    assert ok
    data = read_frames(folder)
    assert data.throughput[["start", "depth"]].to_numpy().tolist() == [[0, 0], [1, 0]]
    assert data.cells["unsupported"].item() == (
        "throughput: depths: tokens cannot be in the cache before the prompt with this engine or model"
    )
    _, _, watcher = run(settings, tmp_path)
    assert watcher.said[0].startswith("fp16: already measured")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depths": [512]}, "depths must begin with 0"),
        ({"depths": [0, 8, 8]}, "depths must begin with 0 and be distinct"),
        ({"depths": [0, 8], "kv_cache": "int8"}, "depths need a cache in 16 bit"),
    ],
)
def test_depths_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ThroughputConfig.model_validate(settings)


def demo_run(depths: list[int], **timed: int) -> RunConfig:
    throughput = {"batch_sizes": [1, 2], "depths": depths} | timed
    base = {"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}]}
    return RunConfig.model_validate(base | {"measure": {"throughput": throughput}, "dtype": "float32"})


def test_a_depth_beyond_the_context_is_refused_and_the_largest_is_predicted() -> None:
    most = json.loads((demo.MODEL_DIR / "config.json").read_text())["max_position_embeddings"]
    machine = environment()
    (problem,) = forecast.make(demo_run([0, most], seq_len=64, new_tokens=8), machine, rate=1e9).problems
    assert problem == (
        f"measure.throughput.depths: {most} tokens before a seq_len of 64 are more than the model's context of {most}; "
        f"set them to {most - 64} or less"
    )
    plain, deep = (
        forecast.make(demo_run(depths, seq_len=64, new_tokens=8), machine, rate=1e9).cells[0].batches[1]
        for depths in ([0], [0, 128])
    )
    assert (plain.depth, deep.depth) == (0, 128)
    assert deep.cache_bytes == 3 * plain.cache_bytes
    assert deep.peak_memory_bytes > plain.peak_memory_bytes


def test_a_default_length_leaves_room_for_the_depths() -> None:
    fitted = fit_lengths(demo_run([0, 128]), {"max_position_embeddings": 512}).measure.throughput
    assert fitted is not None
    assert fitted.seq_len == 512 - 128


@pytest.mark.parametrize(("batch_size", "prompt", "depth"), [(1, 64, 1024), (2, 256, 256), (1, 700, 100)])
def test_the_peak_at_a_depth_is_predicted(tmp_path: Path, batch_size: int, prompt: int, depth: int) -> None:
    content = {"model_type": "llama"} | DIMENSIONS | {"max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(content))
    random_weights.write(tmp_path, torch.bfloat16, seed=0)
    loaded = fp16.load(variant_options(tmp_path), FP16(), None)
    engine = TorchEngine(loaded)
    tokens = np.zeros((batch_size, depth + prompt), np.int64)
    session = engine.session(batch_size, depth + prompt + 8)
    peak = sum(engine.peak_memory(lambda: session.generate(tokens[:, depth:], 2, after=tokens[:, :depth])))
    predicted = Prediction(architecture(tmp_path), FP16(), CPU).filled_generation_bytes(
        batch_size, prompt, prompt + 8, depth
    )
    assert predicted == pytest.approx(peak, rel=0.1)


def test_a_prompt_that_is_too_long_at_a_depth_is_refused_before_anything_is_timed(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(QbenchError, match=r"measure\.throughput\.depths: 262 tokens, more than the model's context"):
        measured(loaded, Script([]), tmp_path, depths=[0, 250])


def test_depths_are_drawn_and_tabled_and_stay_out_of_other_figures() -> None:
    rows = [
        trial(label, None, 1, trial=i, depth=depth, decode_tokens_per_s=speed / (1 + depth / 1000), ttft_s=0.5)
        for label, speed in (("fp16", 40.0), ("int4", 100.0))
        for depth in (0, 512, 2048)
        for i in range(2)
    ]
    data = made_up_run([cell("fp16"), cell("int4"), *rows], batch_sizes=[1])
    summary = summarize(data)
    assert [one.at(1).tokens_per_s for one in summary.cells] == [40, 100]
    assert [(one.depth, one.tokens_per_s) for one in summary.cells[1].deeper] == [
        (512, pytest.approx(100 / 1.512)), (2048, pytest.approx(100 / 3.048)),
    ]  # fmt: skip
    report = collect(data)
    chart = {kind.key: chart for kind, chart in charts(report)}["depths"]
    assert isinstance(chart, ScatterChart)
    assert [(point.x, point.y) for point in chart.series[0].points] == [
        (0, 40), (512, pytest.approx(40 / 1.512)), (2048, pytest.approx(40 / 3.048)),
    ]  # fmt: skip
    table = speed_tables.depths([report])
    assert table is not None
    assert [row.fields[2].text for row in table.rows[:3]] == ["0", "512", "2,048"]
    assert [row.fields[4].text for row in table.rows[:3]] == ["3,840"] * 3, (
        "1,920 tokens of the prompt in half a second"
    )


def test_without_a_depth_there_is_no_chart_of_it() -> None:
    report = collect(made_up_run([cell("fp16"), trial("fp16", None, 1, decode_tokens_per_s=40.0)], batch_sizes=[1]))
    assert "depths" not in [kind.key for kind, _ in charts(report)]
    assert speed_tables.depths([report]) is None
