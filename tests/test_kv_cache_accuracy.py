"""Cells whose keys and values are integers: scores beside stock transformers that decodes token by token."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from transformers import QuantizedCache

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import SustainedConfig, ThroughputConfig
from qbench.engine.base import Query
from qbench.engine.torch.as_decoded import blocks
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.step import keeping
from qbench.records.answers import task_file
from tests.support import tiny_llama as tiny
from tests.support.frames import read_frames
from tests.support.running import execute
from tests.support.runs import HereExecutor, run_config
from tests.support.watchers import Watcher

pytestmark = pytest.mark.skipif(find_spec("hqq") is None, reason="hqq is not installed")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The demo model in float32, with keys and values of 2 heads of 64 channels."""
    return fp16.load(tiny.options(demo.MODEL_DIR, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


@pytest.fixture(scope="module")
def tokens(loaded: LoadedModel) -> np.ndarray:
    return np.array(loaded.tokenizer(demo.HELDOUT_TEXT.read_text())["input_ids"][:300])


@pytest.fixture(scope="module")
def decoded(loaded: LoadedModel, tokens: np.ndarray) -> torch.Tensor:
    """Log-probabilities [300, vocabulary] of stock transformers, one token a forward over its 4-bit cache."""
    cache = QuantizedCache(
        backend="hqq", config=loaded.model.config, nbits=4, axis_key=1, axis_value=1, q_group_size=64,
        residual_length=128,
    )  # fmt: skip
    state = keeping(loaded.model, cache)
    with torch.inference_mode():
        steps = [loaded.model(torch.tensor([[token]]), **state, use_cache=True) for token in tokens]
    return torch.cat([step.logits[0] for step in steps]).double().log_softmax(-1)


def truth(logprobs: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(logprobs[torch.arange(len(tokens) - 1), torch.from_numpy(tokens[1:])])


def test_a_window_is_scored_as_it_would_be_decoded(
    loaded: LoadedModel, tokens: np.ndarray, decoded: torch.Tensor
) -> None:
    expected = truth(decoded, tokens)
    found = TorchEngine(loaded, "int4").score(tokens, top_k=4)
    plain = TorchEngine(loaded).score(tokens).truth
    error, effect = np.abs(found.truth - expected), np.abs(plain - expected)
    # Sums of another order change a code of 4 bits now and then.
    assert error.mean() < 0.05 * effect.mean()
    np.testing.assert_allclose(found.truth[:128], expected[:128], atol=1e-4)
    assert effect[129:].mean() > 1e-3, "an effect that does not show would test nothing"
    assert found.best is not None
    assert np.abs(found.best - np.asarray(decoded[:-1].amax(1))).mean() < 0.05 * effect.mean()


def test_answers_of_prompts_of_different_lengths_are_those_of_decoding(
    loaded: LoadedModel, tokens: np.ndarray, decoded: torch.Tensor
) -> None:
    ids = tuple(tokens.tolist())
    queries = [Query(ids[:280], ids[280:283]), Query(ids[:150], ids[150:151]), Query(ids[:40], ids[40:42])]
    found = TorchEngine(loaded, "int4").loglikelihoods(queries, batch_size=3, share=True)
    answers = {query: answer for batch in found.batches for query, answer in batch.items()}
    assert not found.shared
    expected = truth(decoded, tokens)
    for query in queries:
        start = len(query.stem) - 1
        assert answers[query][0] == pytest.approx(expected[start : start + len(query.answer)].sum(), abs=0.02)


def test_generation_is_that_of_transformers_over_its_quantized_cache(loaded: LoadedModel, tokens: np.ndarray) -> None:
    prompt = tuple(tokens[:200].tolist())
    settings = {
        "backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1, "q_group_size": 64, "residual_length": 128,
    }  # fmt: skip
    stock = loaded.model.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, cache_implementation="quantized",
        cache_config=settings,
    )  # fmt: skip
    (found,) = TorchEngine(loaded, "int4").complete([prompt], 24, lambda tokens: False)
    assert found == tuple(stock[0, 200:].tolist())


def test_blocks_end_where_the_cache_is_quantized_while_decoding() -> None:
    assert [(block.start, block.stop) for block in blocks(300)] == [(0, 1), (1, 129), (129, 257), (257, 300)]
    assert blocks(1) == [slice(0, 1)]


CELLS = [{"kind": "fp16", "label": "kv4", "kv_cache": "int4"}, {"kind": "fp16"}]


def test_a_cell_with_a_quantized_cache_is_compared_with_the_one_without(tmp_path: Path) -> None:
    measure = {
        "memory": {"seq_len": 16},
        "throughput": {"batch_sizes": [1], "seq_len": 24, "new_tokens": 4, "trials": 1, "warmup": 0},
        "perplexity": {"text": "demo", "window": 300, "limit": 2},
        "mmlu": {"data": "demo", "limit": 1},
        "tasks": {"names": ["demo_qa"], "limit": 12},
    }
    config = run_config(backends=CELLS, measure=measure, dtype="float32")
    folder, ok = execute(config, tmp_path, Watcher(), executor=HereExecutor())
    run = read_frames(folder)
    assert ok, run.cells["error"]
    assert run.reference == "fp16"
    assert dict(zip(run.cells["label"], run.cells["kv_cache"], strict=True)) == {"kv4": "int4", "fp16": "16bit"}
    assert dict(zip(run.throughput["label"], run.throughput["kv_cache"], strict=True)) == {
        "kv4": "int4", "fp16": "16bit",
    }  # fmt: skip
    rows = run.perplexity.set_index("label")
    assert rows.loc["kv4", "kl_mean"] > 1e-6
    plain, other = (pd.read_parquet(folder / "answers" / f"{label}.parquet") for label in ("fp16", "kv4"))
    assert np.abs(plain["logprob_a"] - other["logprob_a"]).max() > 1e-4
    assert set(run.task_answers["demo_qa"]) == {"fp16", "kv4"}
    assert (folder / "answers" / task_file("kv4", "demo_qa")).is_file()


def test_what_a_cell_says_comes_before_what_a_measure_says_of_all() -> None:
    timed = {"throughput": {"seq_len": 24, "new_tokens": 4, "kv_cache": "int8"}, "sustained": {"seq_len": 256}}
    config = run_config(backends=CELLS, measure=timed)
    of = [config.measure.of(backend) for backend in config.backends]
    speed, load = ([one[name] for one in of] for name in ("throughput", "sustained"))
    assert [one.kv_cache for one in speed if isinstance(one, ThroughputConfig)] == ["int4", "int8"]
    assert [one.kv_cache for one in load if isinstance(one, SustainedConfig)] == ["int4", "16bit"]
    with pytest.raises(ValidationError, match="that of kv4 grows"):
        run_config(backends=CELLS, measure={"throughput": {"decode": "compiled"}})
    with pytest.raises(ValidationError, match="depths: need a cache in 16 bit, and kv4 has a kv_cache of its own"):
        run_config(backends=CELLS, measure={"throughput": {"depths": [0, 64]}})
    with pytest.raises(ValidationError, match="is of models that transformers runs; gguf takes 16bit"):
        run_config(backends=[{"kind": "gguf", "kv_cache": "int8"}])
