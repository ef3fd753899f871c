"""Our INT4 in MLX against transformers with the same weights, dequantized, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qbench import demo
from qbench.backends import mlx
from qbench.backends.mlx.export import export
from qbench.config import ModelConfig, RunConfig
from qbench.config.target import Target
from qbench.engine.base import Query
from qbench.engine.mlx import MlxEngine
from qbench.errors import NotFiniteError, QbenchError
from qbench.int4.quantizer import quantize
from qbench.model.architecture import of_model
from qbench.model.load import LoadOptions
from qbench.plan.engines import predict
from tests.support import families
from tests.support.runs import run
from tests.support.tiny_llama import options as options_in
from tests.support.tiny_llama import save_tiny_llama


def options(folder: Path, work: Path) -> LoadOptions:
    return options_in(folder, work, torch.float32)


@dataclass
class Pair:
    """The demo model in MLX, and transformers' with the very weights that MLX's codes stand for."""

    engine: MlxEngine
    stock: torch.nn.Module
    folder: Path

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.stock(torch.from_numpy(tokens)).logits.double().numpy()


def load_both(folder: Path, work: Path) -> Pair:
    import mlx.core as mx
    from mlx import nn

    engine = mlx.load(options(folder, work), mlx.CONFIG(group_size=32), None)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in engine._model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            weight = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
            stock.get_submodule(name).weight.data = torch.from_numpy(np.array(weight))
    return Pair(engine, stock.eval(), work / "checkpoint")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_both(demo.MODEL_DIR, tmp_path_factory.mktemp("mlx"))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mlx_reads_the_values_that_our_codes_stand_for(bits: int, symmetric: bool) -> None:
    import mlx.core as mx

    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(bits))
    ours = quantize(weight, bits=bits, group_size=32, symmetric=symmetric, scale_dtype=torch.float16)
    parts = {name: mx.array(part.numpy()) for name, part in mlx.affine(ours, torch.float32).items()}
    values = mx.dequantize(parts["weight"], parts["scales"], parts["biases"], group_size=32, bits=bits)
    stream = np.unpackbits(ours.qweight.numpy(), axis=1, bitorder="little")
    codes = stream.reshape(6, 128, bits) @ (1 << np.arange(bits))
    scales = np.repeat(ours.scales.double().numpy(), 32, 1)
    zeros = 0 if ours.zeros is None else np.repeat(ours.zeros.double().numpy(), 32, 1)
    np.testing.assert_allclose(np.array(values), scales * (codes.astype(float) - 2 ** (bits - 1)) + zeros, atol=1e-5)


def assert_same_tokens(pair: Pair) -> None:
    prompts = np.random.default_rng(1).integers(1, 4096, size=(3, 20))
    found = pair.engine.session(3, 32).generate(prompts, 12)
    with torch.inference_mode():
        tokens = pair.stock.generate(
            torch.from_numpy(prompts), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
        )
    assert found.tokens.tolist() == tokens[:, 20:].tolist()
    assert len(found.step_s) == 11
    filled = pair.engine.session(3, 32).generate(prompts[:, 13:], 12, after=prompts[:, :13])
    assert filled.tokens.tolist() == found.tokens.tolist()


def test_tokens_are_those_of_stock_generate(pair: Pair) -> None:
    assert_same_tokens(pair)


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Phi-3", "Cohere"])
def test_tokens_of_other_families_are_those_of_stock_generate(family: str, tmp_path: Path) -> None:
    assert_same_tokens(load_both(families.save(family, tmp_path / "m"), tmp_path))


def test_rotary_settings_of_llama_3_reach_mlx(tmp_path: Path) -> None:
    folder = families.save("Llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_parameters"] = rope | {"original_max_position_embeddings": 16}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_tokens(load_both(folder, tmp_path))


def test_loglikelihoods_are_those_of_the_logits(pair: Pair) -> None:
    rng = np.random.default_rng(2)
    queries = [
        Query(tuple(rng.integers(4096, size=stem).tolist()), tuple(rng.integers(4096, size=answer).tolist()))
        for stem, answer in ((5, 1), (17, 3), (9, 4), (1, 2))
    ]
    found: dict[Query, tuple[float, bool]] = {}
    for batch in pair.engine.loglikelihoods(queries, batch_size=3, share=True).batches:
        found |= batch
    for query in queries:
        logits = pair.logits(np.array([[*query.stem, *query.answer[:-1]]]))[0, len(query.stem) - 1 :]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert found[query][0] == pytest.approx(logprobs[range(len(query.answer)), query.answer].sum(), abs=1e-3)


def test_scores_are_those_of_the_logits(pair: Pair) -> None:
    tokens = np.random.default_rng(3).integers(4096, size=300)
    scores = pair.engine.score(tokens, top_k=5)
    logits = pair.logits(tokens[None, :-1])[0]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores.truth, logprobs[np.arange(299), tokens[1:]], atol=1e-3)
    assert scores.words is not None
    assert scores.outlines is not None
    known = np.take_along_axis(logprobs, scores.words, 1)
    np.testing.assert_allclose(scores.outlines[:, :5], known, atol=1e-3)
    np.testing.assert_allclose(np.sort(known), np.sort(logprobs)[:, -5:], atol=1e-3)
    np.testing.assert_allclose(np.exp(scores.outlines[:, 5]), 1 - np.exp(known).sum(1), atol=1e-4)
    watched = pair.engine.score(tokens, words=scores.words)
    np.testing.assert_allclose(watched.outlines, scores.outlines, atol=1e-5)


def predicted_weights() -> int:
    """By `qbench plan`, of the demo model in float32."""
    model = of_model(ModelConfig(demo=True))
    assert model is not None
    return predict(model, mlx.CONFIG(group_size=32), Target("cpu", 4)).weights().total


def test_what_an_engine_says_of_itself_is_counted_by_hand(pair: Pair) -> None:
    about, config = pair.engine.about, json.loads((demo.MODEL_DIR / "config.json").read_text())
    assert about.quantized_layers == 7 * config["num_hidden_layers"]
    assert about.effective_bits_per_weight == 4 + 2 * 32 / 32  # a scale and an offset of 32 bits for 32 codes
    hidden, width, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    linears = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * width)
    norms = (2 * layers + 1) * hidden
    assert about.weight_bytes == linears * 6 // 8 + 4 * (config["vocab_size"] * hidden + norms)
    assert about.weight_bytes == pytest.approx(predicted_weights(), rel=1e-3)
    prompts = np.zeros((1, 64), np.int64)
    peak = pair.engine.peak_memory(lambda: pair.engine.session(1, 65).generate(prompts, 1))
    assert peak[0] > about.weight_bytes


def test_nan_is_no_figure(tmp_path: Path) -> None:
    import mlx.core as mx

    engine = mlx.load(options(save_tiny_llama(tmp_path / "m"), tmp_path), mlx.CONFIG(group_size=32), None)
    norm = engine._model.model.norm
    norm.weight = mx.full(norm.weight.shape, float("nan"))
    with pytest.raises(NotFiniteError):
        engine.session(1, 8).generate(np.zeros((1, 4), np.int64), 2)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"quantization": None}, "names no quantization of MLX's"),
        ({"group_size": 64}, {}, "group_size 64 is asked for, but .* was quantized with group_size 32"),
        ({}, {"num_hidden_layers": 5}, "is a checkpoint of another model: num_hidden_layers is 5, here 4"),
    ],
)
def test_other_checkpoints_are_refused(
    pair: Pair, tmp_path: Path, settings: dict[str, object], change: dict[str, object], message: str
) -> None:
    content = json.loads((pair.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    config = mlx.CONFIG.model_validate({"kind": "mlx", "checkpoint": tmp_path, **settings})
    with pytest.raises(QbenchError, match=message):
        mlx.load(options(demo.MODEL_DIR, tmp_path), config, None)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("Bloom", "models of the type bloom"),
        ("Gemma 2", "models of the type gemma2"),
        ("Mistral, sliding window", "mistral with a window of attention"),
        ("Qwen2, sliding window", "qwen2 with a window of attention"),
    ],
)
def test_what_mlx_lm_computes_otherwise_is_refused_by_name(family: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=f"mlx-lm is not known to compute {message} as transformers does"):
        mlx.load(options(families.save(family, tmp_path / "m"), tmp_path), mlx.CONFIG(group_size=32), None)


def test_groups_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = families.save("Llama", tmp_path / "m")
    with pytest.raises(QbenchError, match="has 64 inputs, which groups of 128 do not divide"):
        mlx.load(options(folder, tmp_path), mlx.CONFIG(group_size=128), None)


def test_an_exported_folder_is_what_a_run_measures_and_mlx_lm_loads(pair: Pair, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load

    config = mlx.CONFIG(label="mlx", group_size=32).with_checkpoint(pair.folder)
    out = export(options(demo.MODEL_DIR, tmp_path), config, "someone/demo", tmp_path / "out")
    model, tokenizer = load(str(out))
    tokens = tokenizer.encode("A bird", add_special_tokens=False)
    assert tokens == pair.engine.encode("A bird", special=False)
    np.testing.assert_array_equal(np.array(model(mx.array([tokens]))), np.array(pair.engine._model(mx.array([tokens]))))
    assert "base_model: someone/demo" in (out / "README.md").read_text()


def test_a_cell_takes_every_measure(tmp_path: Path) -> None:
    settings = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"demo": True},
            "dtype": "float32",
            "backends": [{"kind": "mlx", "group_size": 32}],
            "measure": {
                "memory": {"seq_len": 8},
                "throughput": {"batch_sizes": [2], "seq_len": 24, "new_tokens": 4, "trials": 2},
                "mmlu": {"data": "demo", "subjects": ["invented_birds"], "limit": 2, "num_fewshot": 0},
                "perplexity": {"window": 64, "limit": 1, "divergence": False},
                "generations": {"prompts": ["A bird"], "new_tokens": 2},
            },
        }
    )
    folder, ok, _ = run(settings, tmp_path)
    assert ok, (folder / "cells.csv").read_text()
