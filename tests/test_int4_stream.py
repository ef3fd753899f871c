"""Loading tensor by tensor against transformers' own loading, bit for bit, and what the files can have wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from qbench.backends import int4
from qbench.backends.int4 import Int4, shards
from qbench.backends.int4.shards import DTYPES, INDEX, read_header
from qbench.backends.int4.stream import place, quantizer, stream
from qbench.engine.torch.decode import make_decoder
from qbench.engine.torch.loaded import block_linears
from qbench.engine.torch.memory import peak_live_bytes
from qbench.errors import QbenchError
from qbench.int4 import QuantizedTensor, QuantLinear, dequantize, quantize, quantize_model
from qbench.model.load import load_pretrained
from tests.support.tiny_variants import LARGEST_TENSOR, TOKENS, assert_same, llama, neox, options, qwen2, save

PLAIN = Int4(search="none", group_size=32, kernel="reference")


def streamed(folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    model, weights = stream(options(folder, dtype), quantizer(PLAIN))
    place(model, weights, kernel="reference")
    return model


def whole(folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """In 16 bit first, by transformers, then quantized."""
    model = load_pretrained(options(folder, dtype))
    quantize_model(model, tuple(block_linears(model)), search="none", group_size=32, kernel="reference")
    return model


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """Replace, add or (None) remove tensors of model.safetensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})
    return file


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "60KB"])
@pytest.mark.parametrize("make", [llama, qwen2, neox])
def test_it_is_what_quantizing_the_16_bit_model_gives(tmp_path: Path, make, shard: str, tied: bool) -> None:
    save(make(tied=tied), tmp_path, shard=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 if shard == "1GB" else (tmp_path / INDEX).exists()
    assert_same(streamed(tmp_path), whole(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weights_are_cast_before_they_are_quantized(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    save(qwen2(), tmp_path, stored)
    model = streamed(tmp_path, dtype)
    assert model.dtype == dtype
    assert_same(model, whole(tmp_path, dtype))


def test_a_file_saved_without_the_head_is_read_with_the_tied_one(tmp_path: Path) -> None:
    save(llama(tied=True).model, tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    assert_same(streamed(tmp_path), whole(tmp_path))


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_model_whose_file_holds_both_names(tmp_path: Path, same: bool) -> None:
    """Tied if they are equal; else, as transformers does, each keeps its own."""
    save(llama(tied=True), tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, {"lm_head.weight": embedding.clone() if same else embedding + 1})
    model = streamed(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == same
    assert_same(model, whole(tmp_path))


def test_parameters_that_a_model_keeps_in_float32_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(llama(), tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["input_layernorm"])
    model = streamed(tmp_path)
    assert model.model.layers[0].input_layernorm.weight.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert_same(model, whole(tmp_path), runs=False)


def test_buffers_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    rewrite(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert_same(streamed(tmp_path), whole(tmp_path))


def test_a_weight_is_gone_before_the_next_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(llama(), tmp_path)
    before: list[weakref.ref[torch.Tensor]] = []
    names = []
    read = shards.StoredTensor.read

    def watched(*arguments: Any) -> torch.Tensor:
        assert not [ref for ref in before if ref() is not None]
        return read(*arguments)

    monkeypatch.setattr(shards.StoredTensor, "read", watched)

    def quantize_one(name: str, weight: torch.Tensor) -> QuantizedTensor:
        before.append(weakref.ref(weight))
        names.append(name)
        return quantize(weight, group_size=32, search="none")

    model, weights = stream(options(tmp_path), quantize_one)
    assert sorted(names) == sorted(f"{name}.weight" for name in weights)
    assert list(weights) == list(block_linears(model))
    assert {linear.weight.device.type for linear in block_linears(model).values()} == {"meta"}
    place(model, weights)
    assert weights == {}
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta]


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(set(DTYPES) - {"BOOL"})), st.lists(st.integers(0, 7), max_size=3)), max_size=5
    ),
    st.sampled_from([8, 24, 1 << 20]),
)
def test_any_file_reads_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, list[int]]], chunk: int
) -> None:
    file = tmp_path_factory.mktemp("any") / "x.safetensors"
    made = {f"t{i}": torch.randint(0, 99, shape).to(DTYPES[dtype]) for i, (dtype, shape) in enumerate(tensors)}
    save_file(made, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_BYTES", chunk)
        found = {stored.name: stored.read(torch.device("cpu")) for stored in read_header(file)}
        as_floats = {stored.name: stored.read(torch.device("cpu"), torch.float32) for stored in read_header(file)}
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(as_floats[name], tensor.float(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = save(llama(), tmp_path_factory.mktemp("whole"))
    return (folder / "model.safetensors").read_bytes()


@hypothesis_settings(deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, shard: bytes, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, len(shard) - 1) | st.integers(0, 4096))
    file = tmp_path_factory.mktemp("cut") / "model.safetensors"
    file.write_bytes(shard[:kept])
    with pytest.raises(QbenchError, match=r"model\.safetensors: is (truncated within|no safetensors file)") as caught:
        read_header(file)
    assert "download the folder again" in str(caught.value)


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    last = read_header(tmp_path / "model.safetensors")[-1]
    (tmp_path / "model.safetensors").write_bytes(b"x" * (last.start + 1))
    with pytest.raises(QbenchError, match=f"ends within {last.name}"):
        last.read(torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, r"no shard holds model\.norm\.weight, which config\.json \(LlamaForCausalLM\)"),
        ({"lm_head.weight": None}, r"no shard holds lm_head\.weight"),
        ({"x": torch.zeros(1), "y": torch.zeros(1)}, r"model\.safetensors: x \(and 1 more\) is no weight of the model"),
        (
            {"model.norm.weight": torch.zeros(9)},
            r"norm\.weight has shape \[9\], where config\.json asks for \[64\]",
        ),
        (
            {"model.layers.1.mlp.up_proj.weight": torch.full((160, 64), torch.nan)},
            r"model\.layers\.1\.mlp\.up_proj\.weight: holds NaN or infinity .*; the checkpoint is damaged",
        ),
        (
            {"model.norm.weight": torch.zeros(64).to(torch.float8_e4m3fn)},
            r"model\.norm\.weight is stored as F8_E4M3; give a checkpoint in 16 or 32 bit",
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(
    tmp_path: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    save(llama(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(QbenchError, match=words):
        stream(options(tmp_path), quantizer(PLAIN))


def test_missing_and_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    save(llama(), tmp_path, shard="60KB")
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(QbenchError, match=rf"{victim.name}: this shard is missing; copy or download"):
        streamed(tmp_path)
    victim.write_bytes((4).to_bytes(8, "little") + b"[1 ]" + content)
    with pytest.raises(QbenchError, match=rf"{victim.name}: is no safetensors file, or damaged"):
        streamed(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": 3}')
    with pytest.raises(QbenchError, match=r"index\.json: not a readable index"):
        streamed(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(QbenchError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        streamed(tmp_path)


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(QbenchError, match=r"config\.json: these weights are quantized already \(fp8\); give"):
        streamed(tmp_path)


def test_a_kernel_that_cannot_serve_is_refused_with_the_remedy(tmp_path: Path) -> None:
    save(llama(), tmp_path)
    with pytest.raises(QbenchError, match=r"backends\.int4: kernel aten needs whole groups .*; use `kernel: auto`"):
        int4.load(options(tmp_path), Int4(kind="int4", group_size=48, kernel="aten", search="none"), None)


@pytest.mark.parametrize("make", [llama, qwen2])
def test_a_loaded_model_says_what_it_holds(tmp_path: Path, make) -> None:
    loaded = int4.load(options(save(make(), tmp_path)), PLAIN, None)
    linears = block_linears(make())
    assert loaded.quantized == loaded.expected == tuple(linears)
    assert loaded.linear_weights == sum(linear.weight.numel() for linear in linears.values())
    assert loaded.effective_bits_per_weight == 4 + (16 + 16) / 32
    assert loaded.lm_head_bits == 16
    assert loaded.kernel == "reference"
    assert loaded.quantize_s is not None
    assert loaded.quantize_s > 0


@pytest.mark.parametrize("tied", [False, True])
def test_an_int8_head_is_a_copy_of_its_own_in_8_bits(tmp_path: Path, tied: bool) -> None:
    save(llama(tied=tied), tmp_path)
    plain = int4.load(options(tmp_path, torch.float32), PLAIN, None)
    loaded = int4.load(options(tmp_path, torch.float32), PLAIN.model_copy(update={"lm_head": "int8"}), None)
    head, original = loaded.model.get_output_embeddings(), plain.model.lm_head.weight
    assert isinstance(head, QuantLinear)
    assert loaded.lm_head_bits == 8
    assert (head.spec.bits, head.spec.group_size, head.spec.symmetric) == (8, -1, True)
    assert torch.equal(loaded.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight)
    expected = quantize(original, bits=8, group_size=-1, symmetric=True, search="mse")
    assert torch.equal(head.weight(), dequantize(expected))
    assert (loaded.linear_bytes, loaded.linear_weights) == (plain.linear_bytes, plain.linear_weights)
    assert loaded.quantized == plain.quantized
    loaded.check()
    head_16, head_8 = original.nbytes, sum(tensor.nbytes for tensor in head.packed().values())
    assert loaded.weight_bytes == plain.weight_bytes + head_8 - (0 if tied else head_16)
    with torch.inference_mode():
        found, wanted = (each.model(TOKENS).logits for each in (loaded, plain))
    assert 0 < (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_head_that_is_no_linear_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(llama(), tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: nn.Identity())
    with pytest.raises(QbenchError, match="no linear output embedding; use lm_head: 16bit"):
        int4.load(options(tmp_path), PLAIN.model_copy(update={"lm_head": "int8"}), None)


MEASURE = """
import gc, os, sys
from pathlib import Path
from qbench.compat import lean
lean.import_transformers(())
import torch
from qbench.backends import int4
from qbench.backends.int4 import Int4
from qbench.engine.torch.loaded import block_linears, storage_bytes
from qbench.int4 import quantize_model
from qbench.machine.resident import ResidentPeak
from qbench.model.load import LoadOptions, load_pretrained

def load(how, folder):
    options = LoadOptions(folder=Path(folder), device=torch.device("cpu"), dtype=torch.bfloat16, work=Path(folder))
    if how != "whole":
        # The search that takes most is that of the one; it is long.
        return int4.load(options, Int4(lm_head=how, search="mse" if how == "16bit" else "none"), None).model
    model = load_pretrained(options)
    quantize_model(model, tuple(block_linears(model)), search="none")
    return model

def measure(how, small, large):
    load(how, small)  # what is imported at the first load is not the model's
    gc.collect()
    resident = ResidentPeak()
    model = load(how, large)
    print(how, resident.bytes(), storage_bytes([*model.parameters(), *model.buffers()]), flush=True)

for how in ("16bit", "int8", "whole"):
    child = os.fork()
    if not child:
        measure(how, *sys.argv[1:])
        os._exit(0)
    os.waitpid(child, 0)
"""
"""A process for each way of loading, so that none finds memory that another has freed; they share the imports."""


@pytest.fixture(scope="module")
def loading(large_and_small: tuple[Path, Path]) -> dict[str, tuple[int, int]]:
    """By the way of loading, the peak of resident bytes and the bytes of the quantized model."""
    large, small = large_and_small
    done = subprocess.run([sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 3, done.stderr
    return {how: (int(peak), int(quantized)) for how, peak, quantized in rows}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is only known on Linux")
@pytest.mark.parametrize("how", ["16bit", "int8", "whole"])
def test_loading_needs_little_more_than_the_quantized_model(loading: dict[str, tuple[int, int]], how: str) -> None:
    """At most 1.1 x the quantized model + 2 x its largest 16-bit tensor; loading in 16 bit first needs more."""
    peak, quantized = loading[how]
    bound = 1.1 * quantized + 2 * LARGEST_TENSOR
    assert (peak <= bound) == (how != "whole"), f"{peak / 2**20:.0f} MiB, bound {bound / 2**20:.0f} MiB"


def test_a_prefill_copies_no_weight(large_and_small: tuple[Path, Path]) -> None:
    loaded = int4.load(options(large_and_small[0]), Int4(search="none"), None)
    prompt = torch.zeros(2, 16, dtype=torch.int64)
    with torch.inference_mode():
        peak = peak_live_bytes(lambda: make_decoder(loaded.model, "eager", 2, 16).prefill(prompt))
    assert peak < loaded.model.lm_head.weight.nbytes
