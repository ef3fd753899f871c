"""Rounding with calibration activations: against float64 arithmetic, and on the demo model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from qbench.backends import int4
from qbench.backends.int4 import Int4, checkpoint
from qbench.backends.int4.calibrate import quantize_with_text
from qbench.backends.int4.loading import timed_quantizer
from qbench.config import CalibrationConfig, ModelConfig
from qbench.demo import HELDOUT_TEXT, MODEL_DIR
from qbench.engine.torch.loaded import block_linears
from qbench.errors import QbenchError
from qbench.int4 import QuantizedTensor, dequantize, quantize
from qbench.int4.calibrated import DAMPING, Moments, quantize_calibrated
from qbench.int4.quantizer import PER_ROW, PER_TENSOR
from qbench.model import calibration
from qbench.model.load import LoadOptions, load_tokenizer
from tests.support.families import save
from tests.support.tiny_llama import options


def at(folder: Path) -> LoadOptions:
    return options(folder, folder, torch.float32)


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Activations [rows, columns] of which few directions and some columns are large, as in language models."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    x = (mixed + 0.5 * rng.standard_normal((rows, columns))) * np.exp(rng.standard_normal(columns))
    return torch.from_numpy(x).float()


def moments_of(x: torch.Tensor, quantized: torch.Tensor | None = None) -> Moments:
    moments = Moments(x.shape[1], x.device)
    for part, other in zip(x.split(100), (x if quantized is None else quantized).split(100), strict=True):
        moments.add(part, other)
    return moments


def lost(weight: torch.Tensor, q: QuantizedTensor, x: torch.Tensor, quantized: torch.Tensor) -> float:
    """mean |W x - W' x'|^2 in float64."""
    left = x.double() @ weight.double().T - quantized.double() @ dequantize(q).double().T
    return left.square().sum().item() / len(x)


def test_moments_are_the_damped_means_of_outer_products() -> None:
    x = correlated(250, 40).bfloat16()
    other = (x + 0.1 * correlated(250, 40, seed=1)).bfloat16()
    rows, rows_other = x.double().numpy(), other.double().numpy()
    inputs, crossed = rows_other.T @ rows_other / 250, rows.T @ rows_other / 250
    added = DAMPING * np.trace(inputs) / 40 * np.eye(40)
    for found, expected in zip(moments_of(x, other).damped(), (inputs + added, crossed + added), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("group_size", [32, 128, PER_ROW])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [96, 300])
def test_outputs_are_nearer_than_without_the_text(group_size: int, symmetric: bool, columns: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((64, columns))).float()
    x, other = correlated(4000, columns).split(2000)
    options = {"group_size": group_size, "symmetric": symmetric, "scale_dtype": torch.bfloat16}
    found = quantize_calibrated(weight, moments_of(x), **options)
    plain = quantize(weight, **options)
    for inputs in (x, other):  # also inputs that were not calibrated with
        assert lost(weight, found, inputs, inputs) < 0.5 * lost(weight, plain, inputs, inputs)


def test_the_codes_are_those_of_gptq() -> None:
    """Against the update as the paper has it, equations 2 and 3: the inverse of what is left, made anew each time."""
    weight, x = correlated(6, 40, seed=2), correlated(500, 40, seed=3)
    q = quantize_calibrated(weight, moments_of(x), group_size=PER_ROW, scale_dtype=torch.float16)
    scales, zeros = q.scales.double().numpy()[:, 0], q.zeros.double().numpy()[:, 0]
    inputs = moments_of(x).damped()[0].double().numpy()
    left, remaining = weight.double().numpy().copy(), sorted(range(40), key=lambda i: -inputs[i, i])
    while remaining:
        j = remaining[0]
        inverse = np.linalg.inv(inputs[np.ix_(remaining, remaining)])
        value = scales * np.clip(np.round((left[:, j] - zeros) / scales), -8, 7) + zeros
        left[:, remaining] -= np.outer((left[:, j] - value) / inverse[0, 0], inverse[0])
        left[:, j] = value
        remaining.pop(0)
    same = np.isclose(dequantize(q).double().numpy(), left, atol=1e-3 * np.abs(scales).max())
    assert same.mean() > 0.99  # float32 may round a weight in the middle of two codes to the other side


def test_what_was_lost_before_is_made_up_for() -> None:
    weight, x = correlated(64, 96, seed=2), correlated(4000, 96, seed=3)
    quantized = x @ (torch.eye(96) + 0.05 * correlated(96, 96, seed=4) / 10)
    apart = quantize_calibrated(weight, moments_of(quantized), group_size=32, scale_dtype=torch.float16)
    together = quantize_calibrated(weight, moments_of(x, quantized), group_size=32, scale_dtype=torch.float16)
    assert lost(weight, together, x, quantized) < 0.5 * lost(weight, apart, x, quantized)


def test_columns_that_are_never_read() -> None:
    weight, x = correlated(8, 64, seed=6), correlated(500, 64, seed=7)
    x[:, 5:20] = 0
    q = quantize_calibrated(weight, moments_of(x), group_size=32, scale_dtype=torch.float16)
    assert torch.isfinite(dequantize(q)).all()
    nothing = quantize_calibrated(weight, moments_of(torch.zeros(10, 64)), group_size=32, scale_dtype=torch.float16)
    plain = quantize(weight, group_size=32, scale_dtype=torch.float16)
    torch.testing.assert_close(dequantize(nothing), dequantize(plain), rtol=0, atol=1e-6)


def test_what_is_refused() -> None:
    moments = moments_of(torch.eye(8))
    with pytest.raises(ValueError, match="calibrated codes need groups"):
        quantize_calibrated(torch.zeros(2, 8), moments, group_size=PER_TENSOR)
    with pytest.raises(ValueError, match="holds NaN"):
        quantize_calibrated(torch.full((2, 8), torch.nan), moments)
    with pytest.raises(ValidationError, match="needs groups of a row or less"):
        Int4(label="int4", calibrated=True, group_size=0)


@pytest.fixture(scope="module")
def text() -> calibration.Calibration:
    return calibration.prepare(CalibrationConfig(samples=16, length=128), ModelConfig(demo=True), seed=0)


@pytest.fixture(scope="module")
def found(text: calibration.Calibration) -> dict[str, QuantizedTensor]:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return quantize_with_text(model, tokenizer(), Int4(label="int4", calibrated=True), text)


def tokenizer() -> PreTrainedTokenizerBase | None:
    return load_tokenizer(at(MODEL_DIR))


def divergence(weights: dict[str, QuantizedTensor]) -> float:
    """Mean KL divergence from the 16-bit model over text that was not calibrated with."""
    held_out = HELDOUT_TEXT.read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer()(held_out[:20_000], add_special_tokens=False)["input_ids"])
    ids = ids[: len(ids) // 256 * 256].view(-1, 256)[:12]
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    with torch.inference_mode():
        truth = F.log_softmax(model(ids).logits.double(), -1)
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(dequantize(weight))
        said = F.log_softmax(model(ids).logits.double(), -1)
    return F.kl_div(said, truth, reduction="none", log_target=True).sum(-1).mean().item()


def test_the_demo_model_stays_nearer_to_itself(found: dict[str, QuantizedTensor]) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    linears = block_linears(model)
    assert found.keys() == linears.keys()
    plain = {name: quantize(linear.weight.detach()) for name, linear in linears.items()}
    assert divergence(found) < 0.4 * divergence(plain)


def test_a_checkpoint_holds_the_same_codes(
    found: dict[str, QuantizedTensor], text: calibration.Calibration, tmp_path: Path
) -> None:
    settings = Int4(label="int4", calibrated=True)
    source = at(MODEL_DIR)
    checkpoint.write(source, settings, timed_quantizer(source, settings, text), tmp_path / "made")
    _, weights = checkpoint.load(source, tmp_path / "made")
    assert all(torch.equal(weights[name].qweight, found[name].qweight) for name in found)
    known = Int4(label="int4", checkpoint=tmp_path / "made").resolved()
    assert known.calibrated
    assert not known.calibrates
    with pytest.raises(QbenchError, match="calibrated False is asked for"):
        Int4(label="int4", checkpoint=tmp_path / "made", calibrated=False).resolved()


@pytest.mark.parametrize("family", ["Gemma 2", "GPT-NeoX", "Phi-3", "OPT"])
def test_blocks_of_other_families(family: str, text: calibration.Calibration, tmp_path: Path) -> None:
    save(family, tmp_path)
    loaded = int4.load(at(tmp_path), Int4(label="int4", calibrated=True), text)
    loaded.check()


def test_experts_are_refused(text: calibration.Calibration, tmp_path: Path) -> None:
    save("Mixtral", tmp_path)
    with pytest.raises(QbenchError, match="MixtralForCausalLM is not quantized with a text here: its experts"):
        int4.load(at(tmp_path), Int4(label="int4", calibrated=True), text)
