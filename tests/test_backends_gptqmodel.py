import gc
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, StaticCache

if find_spec("gptqmodel") is None:  # not pytest.importorskip: importing it is for the backend, which prepares for it
    pytest.skip("gptqmodel is not installed", allow_module_level=True)

from qbench.backends import awq, fp16, gptq
from qbench.backends._calibrated import Calibrated
from qbench.backends.awq import AWQ
from qbench.backends.fp16 import FP16
from qbench.backends.gptq import GPTQ
from qbench.compat.gptqmodel import BACKEND
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.step import keeping
from qbench.errors import QbenchError
from qbench.model.load import LoadOptions
from tests.support import dequantized
from tests.support import tiny_llama as tiny
from tests.support.compiled import assert_compiles

CALIBRATION = replace(tiny.CALIBRATION, samples=4)
"""Quantizing computes in bfloat16, for which many CPUs have no instructions."""
SCALES = tiny.LINEAR_WEIGHTS // 128
INPUTS = tiny.LAYERS * (6 * tiny.HIDDEN + tiny.INTERMEDIATE)
"""in_features of all linears together."""
INT4PACK_BYTES = tiny.LINEAR_WEIGHTS // 2 + SCALES * (2 + 2 + 4)
"""What torch's CPU kernel holds: codes, and scales and zeros in bfloat16, first apart, then once more side by side."""
ORDER_BYTES = INPUTS * (4 + 4) + len(tiny.LINEARS) * 8 * 4
"""GPTQ's besides: the group and the place of every input, and eight shifts a linear."""


@dataclass(frozen=True)
class Method:
    kind: str
    config: Callable[..., Calibrated]
    load: Callable[..., LoadedModel]
    kernel: str
    linear_bytes: int


METHODS = (
    Method("awq", AWQ, awq.load, "TorchAtenAwqLinear", INT4PACK_BYTES),
    Method("gptq", GPTQ, gptq.load, "TorchAtenLinear", INT4PACK_BYTES + ORDER_BYTES),
)


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.kind)
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    return found


@pytest.fixture(scope="module")
def reported() -> list[tuple[str, int, int]]:
    """The progress of the quantization that all tests share."""
    return []


@pytest.fixture(scope="module")
def options(
    method: Method, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, reported: list[tuple[str, int, int]]
) -> LoadOptions:
    options = tiny.options(tiny_llama, tmp_path_factory.mktemp(method.kind))
    reported.clear()
    return replace(options, progress=lambda *step: reported.append(step))


@pytest.fixture(scope="module")
def loaded(method: Method, options: LoadOptions) -> LoadedModel:
    """Quantized once for all tests; the checkpoint lies in `options.work`."""
    return method.load(options, method.config(), CALIBRATION)


@pytest.fixture
def checkpoint(loaded: LoadedModel, options: LoadOptions, tmp_path: Path) -> Path:
    """A copy of the quantized checkpoint that a test may change."""
    return Path(shutil.copytree(options.work / "checkpoint", tmp_path / "checkpoint"))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_every_block_linear_is_quantized(loaded: LoadedModel, method: Method) -> None:
    assert loaded.quantized == loaded.expected == tiny.LINEARS
    assert loaded.kernel == method.kernel
    assert loaded.dtype == torch.bfloat16
    assert loaded.quantize_s is not None
    assert loaded.quantize_s > 0
    loaded.check()


def test_progress_counts_the_layers(loaded: LoadedModel, reported: list[tuple[str, int, int]]) -> None:
    assert reported == [("quantizing", done, tiny.LAYERS) for done in range(tiny.LAYERS + 1)]


def test_head_and_embedding_stay_16_bit(loaded: LoadedModel) -> None:
    assert type(loaded.model.lm_head) is torch.nn.Linear
    assert loaded.model.lm_head.weight.dtype == loaded.model.model.embed_tokens.weight.dtype == torch.bfloat16


def test_bytes_are_those_of_the_repacked_weights(loaded: LoadedModel, method: Method) -> None:
    assert loaded.linear_bytes == method.linear_bytes
    assert loaded.effective_bits_per_weight == pytest.approx(method.linear_bytes * 8 / tiny.LINEAR_WEIGHTS)
    assert loaded.weight_bytes == loaded.linear_bytes + 2 * tiny.OTHER_WEIGHTS + tiny.ROTARY_BYTES


def test_a_forward_changes_no_bytes(loaded: LoadedModel) -> None:
    before = {tensor.data_ptr() for tensor in loaded.extra_tensors}
    tiny.logits(loaded)
    linears = [loaded.model.get_submodule(name) for name in loaded.quantized]
    held = [value for linear in linears for value in (*linear.buffers(), *vars(linear).values())]
    assert {value.data_ptr() for value in held if isinstance(value, torch.Tensor)} == before


def test_outputs_are_near_the_16_bit_ones(loaded: LoadedModel, tiny_llama: Path, tmp_path: Path) -> None:
    reference = fp16.load(tiny.options(tiny_llama, tmp_path), FP16(), None)
    assert 0.01 < tiny.relative_error(tiny.logits(loaded), tiny.logits(reference)) < 0.4


@torch.inference_mode()
def test_it_decodes_with_a_static_cache(loaded: LoadedModel) -> None:
    cache = StaticCache(config=loaded.model.config, max_cache_len=32)
    arguments = {**keeping(loaded.model, cache), "use_cache": True, "logits_to_keep": 1}
    loaded.model(tiny.TOKENS[:, :-1], **arguments)
    last = loaded.model(tiny.TOKENS[:, -1:], **arguments).logits[:, 0].float()
    assert tiny.relative_error(last, tiny.logits(loaded)[:, -1]) < 0.02


def test_nothing_is_written_beside_the_model_or_into_the_current_folder(loaded: LoadedModel, tiny_llama: Path) -> None:
    model = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in tiny_llama.iterdir()} == model
    assert not Path("logs").exists()


def test_importing_the_library_leaves_hub_cache_and_gpu_order_alone(loaded: LoadedModel) -> None:
    assert "tokenicer" not in os.environ["HF_HOME"]
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize("written_by", ["gptqmodel", "its own library"])
def test_a_ready_checkpoint_needs_no_calibration(
    loaded: LoadedModel, method: Method, options: LoadOptions, checkpoint: Path, written_by: str
) -> None:
    if written_by != "gptqmodel":
        as_its_own_library_writes(checkpoint, method)
    again = method.load(options, method.config(checkpoint=str(checkpoint)), None)
    assert again.quantize_s is None
    assert again.quantized == tiny.LINEARS
    assert again.kernel == method.kernel
    assert tiny.logits(again).equal(tiny.logits(loaded))


@pytest.mark.long
def test_a_step_is_compiled_as_a_whole(loaded: LoadedModel) -> None:
    assert_compiles(loaded)


@pytest.mark.parametrize(
    "kernel",
    ["torch_aten", "torch_fused", pytest.param("torch", marks=pytest.mark.long)],  # torch.compile takes that one
)
def test_a_kernel_gives_the_logits_of_the_weights_that_its_codes_stand_for(
    loaded: LoadedModel, method: Method, options: LoadOptions, checkpoint: Path, kernel: str
) -> None:
    named = method.load(options, method.config(checkpoint=str(checkpoint), kernel=kernel), None)
    classes = {type(named.model.get_submodule(name)) for name in named.quantized}
    assert {BACKEND(f"{method.kind}_{kernel}")} == {backend for one in classes for backend in one.SUPPORTS_BACKENDS}
    assert named.kernel == next(iter(classes)).__name__
    exact = LlamaForCausalLM(named.model.config).double().eval()
    exact.load_state_dict(dequantized.state_dict(load_file(checkpoint / "model.safetensors"), method.kind))
    with torch.inference_mode():
        expected = exact(tiny.TOKENS).logits
    assert tiny.relative_error(tiny.logits(named), expected) < 0.015  # of bfloat16; the codes themselves are 0.1 off


def as_its_own_library_writes(checkpoint: Path, method: Method) -> None:
    """Turn gptqmodel's description of a checkpoint into AutoAWQ's or old AutoGPTQ's."""
    (checkpoint / "quantize_config.json").unlink()
    if method.kind == "awq":
        scheme = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
        edit(checkpoint / "config.json", lambda content: content.update(quantization_config=scheme))
    else:
        scheme = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "sym": True}
        edit(checkpoint / "config.json", lambda content: content.pop("quantization_config"))
        (checkpoint / "quantize_config.json").write_text(json.dumps(scheme))


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("quant_method", "bitnet", "this backend's method"),
        ("bits", 8, "of that width"),
        ("group_size", 64, "set group_size to 64"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    method: Method, options: LoadOptions, checkpoint: Path, key: str, value: object, remedy: str
) -> None:
    edit(checkpoint / "config.json", lambda content: content["quantization_config"].update({key: value}))
    with pytest.raises(QbenchError, match=rf"config.json says {key} {value}.*{remedy}"):
        method.load(options, method.config(checkpoint=str(checkpoint)), None)


def test_a_checkpoint_of_another_model_is_refused(
    method: Method, options: LoadOptions, checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(options.folder, tmp_path / "other"))
    edit(other / "config.json", lambda content: content.update(intermediate_size=1024))
    with pytest.raises(
        QbenchError, match=r"another model: model.layers.0.mlp.gate_proj has 256 inputs and 512 outputs"
    ):
        method.load(replace(options, folder=other), method.config(checkpoint=str(checkpoint)), None)


def test_a_folder_that_is_not_quantized_is_refused(method: Method, options: LoadOptions) -> None:
    with pytest.raises(QbenchError, match="has no quantization_config"):
        method.load(options, method.config(checkpoint=str(options.folder)), None)


def test_a_checkpoint_of_pickles_is_refused(method: Method, options: LoadOptions, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "gptq_model-4bit-128g.bin")
    with pytest.raises(QbenchError, match=r"checkpoint: .* only gptq_model-4bit-128g\.bin, a pickle, .* convert it"):
        method.load(options, method.config(checkpoint=str(checkpoint)), None)


def test_a_missing_checkpoint_is_refused(method: Method, options: LoadOptions, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="neither a folder nor a hub repository"):
        method.load(options, method.config(checkpoint=str(tmp_path / "nowhere")), None)


def test_a_group_size_that_does_not_divide_is_refused_before_quantizing(
    method: Method, options: LoadOptions, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(options.folder, tmp_path / "odd"))
    edit(odd / "config.json", lambda content: content.update(intermediate_size=576))
    message = r"group_size 128 does not divide the 576 inputs of model.layers.0.mlp.down_proj: choose 32 or 64"
    with pytest.raises(QbenchError, match=message):
        method.load(replace(options, folder=odd), method.config(), CALIBRATION)


def test_a_model_without_tokenizer(method: Method, tmp_path: Path) -> None:
    folder = tiny.save_tiny_llama(tmp_path / "bare", tokenizer=False)
    before = {file.name for file in folder.iterdir()}
    loaded = method.load(
        tiny.options(folder, tmp_path / "work"), method.config(), replace(CALIBRATION, samples=2, length=16)
    )
    assert loaded.tokenizer is None
    assert loaded.quantized == tiny.LINEARS
    assert tiny.logits(loaded).isfinite().all()
    assert {file.name for file in folder.iterdir()} == before


@pytest.mark.parametrize(("sym", "desc_act"), [(False, False), (True, True)])
def test_gptq_variants(tiny_llama: Path, tmp_path: Path, sym: bool, desc_act: bool) -> None:
    config = GPTQ(group_size=64, sym=sym, desc_act=desc_act)
    loaded = gptq.load(tiny.options(tiny_llama, tmp_path), config, CALIBRATION)
    reference = fp16.load(tiny.options(tiny_llama, tmp_path), FP16(), None)
    assert 0.01 < tiny.relative_error(tiny.logits(loaded), tiny.logits(reference)) < 0.4


def test_a_float32_run_computes_in_float32(method: Method, options: LoadOptions, checkpoint: Path) -> None:
    config = method.config(checkpoint=str(checkpoint))
    loaded = method.load(replace(options, dtype=torch.float32), config, None)
    assert loaded.dtype == torch.float32
    assert tiny.logits(loaded).isfinite().all()


@pytest.mark.parametrize("method", METHODS[1:], indirect=True, ids=lambda method: method.kind)
def test_the_same_seed_gives_the_same_codes_and_only_the_loaded_model_stays_in_memory(
    method: Method, loaded: LoadedModel, tiny_llama: Path, tmp_path: Path
) -> None:
    before = models_in_memory()
    again = method.load(tiny.options(tiny_llama, tmp_path), method.config(), CALIBRATION)
    assert models_in_memory() - before == {id(again.model)}
    assert tiny.logits(again).equal(tiny.logits(loaded))


def models_in_memory() -> set[int]:
    gc.collect()
    return {id(item) for item in gc.get_objects() if isinstance(item, LlamaForCausalLM)}
