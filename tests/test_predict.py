"""Predictions against models that are really loaded and run, and against arithmetic by hand."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qbench.backends import fp16, int4
from qbench.backends.awq import AWQ
from qbench.backends.fp16 import FP16
from qbench.backends.gptq import GPTQ
from qbench.backends.int4 import Int4
from qbench.backends.nf4 import NF4
from qbench.config import Backend
from qbench.config.target import Target
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.logprobs import log_probabilities
from qbench.engine.torch.memory import peak_bytes
from qbench.int4 import kernels, native
from qbench.int4.quantizer import quantize
from qbench.machine import environment
from qbench.model import random_weights
from qbench.model.architecture import parse
from qbench.model.find import shapes
from qbench.plan.memory import Prediction
from tests.support.architectures import LLAMA, architecture
from tests.support.levels import levels
from tests.support.predictions import CPU, DIMENSIONS, measured_peak
from tests.support.tiny_variants import options

GPU = Target("cuda", 2)

MODELS = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"head_dim": 64, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32, "attention_bias": True},
    "phi3": {"pad_token_id": 0},
    "gemma": {"head_dim": 32},
    "granite": {},
    "llama-wide-heads": {"head_dim": 128, "num_key_value_heads": 4, "intermediate_size": 128},
}


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights of one family."""
    path = tmp_path_factory.mktemp(request.param)
    content = {"model_type": request.param.partition("-")[0]} | DIMENSIONS | MODELS[request.param]
    (path / "config.json").write_text(json.dumps(content))
    random_weights.write(path, torch.bfloat16, seed=0)
    return path


def assert_predicted(loaded: LoadedModel, predicted: Prediction) -> None:
    """Weights within 0.1 % and peaks within 2 %."""
    assert predicted.weights().total == pytest.approx(loaded.weight_bytes, rel=0.001)
    for batch_size, prompt in ((1, 256), (4, 240)):
        peak = predicted.generation_bytes(batch_size, prompt, 256)
        assert peak == pytest.approx(measured_peak(loaded, batch_size, prompt, 256), rel=0.02)


def test_weights_and_peak_of_every_family_are_those_of_the_loaded_model(folder: Path) -> None:
    loaded = fp16.load(options(folder), FP16(), None)
    assert_predicted(loaded, Prediction(architecture(folder), FP16(), CPU))


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """INT4's kernels use these instructions at most."""
    monkeypatch.setenv("QBENCH_CPU_LEVEL", request.param)
    native.level.cache_clear()
    yield
    native.level.cache_clear()


def assert_int4_is_predicted(folder: Path, backend: Int4) -> None:
    loaded = int4.load(options(folder), backend, None)
    target = Target("cpu", 2, environment.detect().cpu_features)
    assert_predicted(loaded, Prediction(architecture(folder), backend, replace(target, kernel=loaded.kernel)))


@pytest.mark.parametrize("level", levels(), indirect=True)
@pytest.mark.usefixtures("level")
def test_int4s_weights_and_peak_are_predicted_at_every_level(folder: Path) -> None:
    assert_int4_is_predicted(folder, Int4(group_size=32))


@pytest.mark.parametrize("level", levels(), indirect=True)
@pytest.mark.usefixtures("level")
def test_those_of_3_bits_too(tiny_llama: Path) -> None:
    assert_int4_is_predicted(tiny_llama, Int4(bits=3, group_size=64))


@pytest.mark.parametrize(
    "backend",
    [
        Int4(group_size=32, symmetric=True),
        Int4(group_size=-1),
        Int4(bits=8, group_size=32, symmetric=True),
        Int4(bits=3, group_size=64),
        Int4(group_size=32, lm_head="int8"),
        Int4(group_size=32, kernel="reference"),
    ],
    ids=["symmetric", "rows", "8 bits", "3 bits", "head", "reference"],
)
def test_int4s_options_are_counted(tiny_llama: Path, backend: Int4) -> None:
    loaded = int4.load(options(tiny_llama), backend, None)
    predicted = Prediction(architecture(tiny_llama), backend, replace(CPU, kernel=loaded.kernel)).weights()
    assert predicted.bits_per_weight == pytest.approx(loaded.effective_bits_per_weight)
    assert predicted.total == pytest.approx(loaded.weight_bytes, rel=0.001)


def test_float32_is_twice_16_bit(tiny_llama: Path) -> None:
    loaded = fp16.load(options(tiny_llama, torch.float32), FP16(), None)
    predicted = Prediction(architecture(tiny_llama), FP16(), Target("cpu", 4))
    assert predicted.weights().total == loaded.weight_bytes
    assert predicted.generation_bytes(2, 64, 96) == pytest.approx(measured_peak(loaded, 2, 64, 96), rel=0.1)


def test_prompts_of_different_lengths_take_a_mask(tmp_path: Path) -> None:
    """That of 4 × 900² bytes, without which the prediction would be 3 % lower; keys and values repeated at 1,900."""
    content = {"model_type": "llama"} | DIMENSIONS | {"max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(content))
    random_weights.write(tmp_path, torch.bfloat16, seed=0)
    loaded = fp16.load(options(tmp_path, torch.float32), FP16(), None)
    predicted, engine = Prediction(architecture(tmp_path), FP16(), Target("cpu", 4)), TorchEngine(loaded)
    for batch_size, longest in ((1, 900), (4, 900), (2, 1900)):
        prompts = [(7,) * (longest - 9 * i) for i in range(batch_size)]
        found = engine.peak_memory(
            lambda prompts=prompts: engine.complete(prompts, 20, lambda tokens: len(tokens) == 2)
        )
        peak = predicted.completion_bytes(batch_size, longest, longest + 20)
        assert peak == pytest.approx(sum(found), rel=0.03)


def test_perplexity_holds_the_logits_of_a_whole_window(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | DIMENSIONS | {"vocab_size": 65536}))
    random_weights.write(tmp_path, torch.bfloat16, seed=0)
    loaded = fp16.load(options(tmp_path), FP16(), None)
    window = torch.arange(1024)

    def forward() -> None:
        for _ in log_probabilities(loaded, window):
            pass

    predicted = Prediction(architecture(tmp_path), FP16(), CPU)
    assert predicted.perplexity_bytes(1024) == pytest.approx(sum(peak_bytes(loaded, forward)), rel=0.1)


@pytest.mark.parametrize(("name", "billions"), [("llama-3-8b", 8.03), ("tinyllama-1.1b", 1.10)])
def test_shipped_shapes_have_the_parameters_that_transformers_builds(name: str, billions: float) -> None:
    content = json.loads(shapes()[name].read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content))
    assert parse(content, name).parameters == sum(parameter.numel() for parameter in model.parameters())
    assert parse(content, name).parameters == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("backend", "target", "bits"),
    [
        (FP16(), GPU, 16),
        (FP16(), Target("cuda", 4), 32),
        (Int4(), GPU, 4 + 32 / 128),
        (Int4(group_size=64), GPU, 4 + 32 / 64),
        (NF4(), GPU, 4 + 32 / 64),
        (NF4(double_quant=True), GPU, 4 + 8 / 64 + 32 / (64 * 256)),
        (NF4(), Target("cpu", 2, ("avx512_bf16",)), 4 + 16 / 64),
        (NF4(), Target("cpu", 2, ("avx2",)), 4 + 32 / 64),
        (AWQ(), GPU, 4 + (16 + 4) / 128),
        (AWQ(group_size=32), GPU, 4 + (16 + 4) / 32),
        (AWQ(), Target("cpu", 2), 4 + 64 / 128),
        (GPTQ(), GPU, 4 + (16 + 4) / 128),
    ],
)
def test_bits_a_weight_are_the_formats(backend: Backend, target: Target, bits: float) -> None:
    assert Prediction(LLAMA, backend, target).weights().bits_per_weight == pytest.approx(bits, rel=0.002)


def test_the_cache_is_two_values_a_layer_head_and_token() -> None:
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a token: 1 GiB for 8192 tokens.
    assert Prediction(LLAMA, FP16(), GPU).cache_bytes(1, 8192) == 2**30
    assert Prediction(LLAMA, FP16(), GPU).cache_bytes(4, 2048) == 2**30


def test_decode_speed_is_bandwidth_over_what_a_step_reads() -> None:
    predicted = Prediction(LLAMA, FP16(), GPU)
    # 8.03 billion parameters but the input embedding, 128256 x 4096, in 16 bit.
    read = 2 * (LLAMA.parameters - 128256 * 4096)
    assert predicted.decode_tokens_per_s(1, 0, 1e12) == pytest.approx(1e12 / read, rel=1e-6)
    cache = 32 * 1000 * 131072
    assert predicted.decode_tokens_per_s(32, 1000, 1e12) == pytest.approx(32 * 1e12 / (read + cache), rel=1e-6)


def test_compute_caps_large_batches_where_it_is_known() -> None:
    predicted = Prediction(LLAMA, Int4(), GPU)
    products = LLAMA.linear_weights + LLAMA.embedding_weights
    assert predicted.decode_tokens_per_s(4096, 0, 1e12, flops=1e14) == pytest.approx(1e14 / (2 * products), rel=1e-6)
    assert predicted.decode_tokens_per_s(1, 0, 1e12, flops=1e14) == predicted.decode_tokens_per_s(1, 0, 1e12)


def test_a_tied_embedding_is_read_and_held_once() -> None:
    tied = parse({"model_type": "llama"} | DIMENSIONS | {"tie_word_embeddings": True}, "x")
    untied = parse({"model_type": "llama"} | DIMENSIONS, "x")
    one, two = (Prediction(model, FP16(), GPU).weights() for model in (tied, untied))
    assert two.total - one.total == 2 * 2048 * 128
    assert one.read_a_step == two.read_a_step == one.total


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [20, 32, 48, 128, -1, 0])
def test_the_predicted_kernel_is_the_one_that_is_chosen(bits: int, group_size: int) -> None:
    config = Int4.model_validate({"kind": "int4", "bits": bits, "group_size": group_size})
    codes = quantize(torch.randn(16, 960), bits=bits, group_size=group_size)
    chosen = kernels.choose(kernels.WeightSpec.of(codes), torch.device("cpu"))
    target = Target(device="cpu", value_bytes=4, cpu_features=environment.detect().cpu_features)
    assert config.kernel_on(target) == chosen.name
