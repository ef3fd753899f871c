"""The decode step through torch.compile: stock tokens, one graph, and a sentence where that cannot be."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench import demo
from qbench.backends import fp16, int4
from qbench.backends.fp16 import FP16
from qbench.backends.int4.options import Int4
from qbench.engine.torch.decode import generate
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.static import CompiledDecoder, GraphDecoder
from qbench.errors import QbenchError
from qbench.int4 import QuantLinear, dequantize, quantize
from qbench.int4.kernels import cuda
from qbench.int4.kernels.base import WeightSpec
from qbench.int4.kernels.cpu import w4a16_cpu
from tests.support.families import save
from tests.support.flash_attention import flash_attention_on_the_cpu
from tests.support.tiny_llama import options

PROMPT = torch.randint(1, 4096, (2, 24), generator=torch.Generator().manual_seed(1))
NEW_TOKENS = 12
LENGTH = PROMPT.shape[1] + NEW_TOKENS


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> Iterator[None]:
    yield
    torch.compiler.reset()


def stock_tokens(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return found[:, PROMPT.shape[1] :]


def loaded_16bit(folder: Path) -> LoadedModel:
    return fp16.load(options(folder, folder, torch.float32), FP16(label="fp16"), None)


@pytest.fixture(scope="module")
def quantized() -> LoadedModel:
    return int4.load(options(demo.MODEL_DIR, demo.MODEL_DIR, torch.float32), Int4(label="int4"), None)


@pytest.mark.parametrize("name", ["demo, 16 bit", "demo, int4", "Gemma 3", "Qwen3-MoE"])
def test_a_compiled_step_is_one_graph_with_stock_tokens(name: str, quantized: LoadedModel, tmp_path: Path) -> None:
    """Traced as a whole, sliding windows, experts and joined INT4 linears among it, and run as traced."""
    if name == "demo, int4":
        loaded = quantized
    else:
        loaded = loaded_16bit(demo.MODEL_DIR if name == "demo, 16 bit" else save(name, tmp_path / "model"))
    decoder = CompiledDecoder(loaded.model, len(PROMPT), LENGTH, backend="aot_eager")
    expected = stock_tokens(loaded.model)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2):  # a decoder forgets its last sequence
            assert torch.equal(torch.from_numpy(generate(decoder, PROMPT, NEW_TOKENS).tokens), expected)


def w4a16(x: Tensor, words: Tensor, pairs: Tensor, bits: int, out_features: int, group_columns: int) -> Tensor:
    """The operator of the CUDA kernels, by the dequantized weight."""
    spec = WeightSpec(out_features, x.shape[1], bits, group_columns, symmetric=False, scale_dtype=pairs.dtype)
    weight = dequantize(cuda.unpack({"words": words, "pairs": pairs}, spec), x.dtype)
    return torch.nn.functional.linear(x, weight)


@pytest.mark.parametrize("bits", [3, 4])
def test_the_step_that_is_compiled_on_cuda_is_one_graph(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """INT4 in the layout of the CUDA kernels, and attention over what is filled of the cache: tokens as not compiled.

    The two operators, which run on CUDA only, compute by their descriptions.
    """
    importlib.import_module("qbench.int4.kernels._cuda")  # declares the operator
    monkeypatch.setattr(cuda, "refusal", lambda spec, device: None)
    with torch.library._scoped_library("qbench", "IMPL") as library, flash_attention_on_the_cpu() as calls:
        library.impl("w4a16_cuda", w4a16, "CPU")
        config = Int4(label="int4", kernel="cuda", bits=bits)
        loaded = int4.load(options(demo.MODEL_DIR, demo.MODEL_DIR, torch.bfloat16), config, None)
        plain = generate(GraphDecoder(loaded.model, len(PROMPT), LENGTH), PROMPT, NEW_TOKENS).tokens
        decoder = CompiledDecoder(loaded.model, len(PROMPT), LENGTH, backend="aot_eager")
        calls.clear()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert np.array_equal(generate(decoder, PROMPT, NEW_TOKENS).tokens, plain)
    assert loaded.kernel == "cuda"
    assert len(calls) == loaded.model.config.num_hidden_layers * (NEW_TOKENS - 1)


def test_a_model_without_a_cache_of_one_length_is_not_compiled(tmp_path: Path) -> None:
    engine = TorchEngine(loaded_16bit(save("Mamba", tmp_path / "model")))
    with pytest.raises(
        QbenchError, match="decode: compiled needs a cache of one length, which MambaForCausalLM does not"
    ):
        engine.session(1, 8, decode="compiled")
    assert engine.decode_mode("auto") == "eager"


def test_a_step_that_cannot_be_traced_is_refused_with_the_reason(tmp_path: Path) -> None:
    loaded = loaded_16bit(save("Llama", tmp_path / "model"))
    loaded.model.lm_head.register_forward_hook(lambda module, args, out: out * (1 if out.sum().item() else 2))
    with pytest.raises(QbenchError, match=r"torch.compile does not take the step of LlamaForCausalLM .+; use auto"):
        TorchEngine(loaded).session(1, 8, decode="compiled")


def test_without_a_compiler_it_is_said_which(quantized: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        QbenchError, match=r"compiled needs a C\+\+ compiler, and there is no no-such-compiler here; inst"
    ):
        TorchEngine(quantized).decode_mode("compiled")


@pytest.mark.parametrize(("rows", "columns", "bits", "group_size"), [(48, 128, 4, 64), (33, 100, 3, -1)])
def test_the_operator_of_the_cpu_kernel_makes_what_it_says(rows: int, columns: int, bits: int, group_size: int) -> None:
    """What torch.compile relies on: shapes, dtypes and strides as announced, arguments left alone."""
    linear = QuantLinear(quantize(torch.randn(rows, columns), bits=bits, group_size=group_size), kernel="cpu")
    x = torch.randn(3, columns)
    arguments = (x, *linear.packed().values(), bits, rows, linear.spec.group_columns)
    torch.library.opcheck(w4a16_cpu, arguments)
    assert torch.equal(w4a16_cpu(*arguments), linear(x))


@pytest.mark.long
def test_a_session_compiles_with_inductor_before_it_generates(quantized: LoadedModel) -> None:
    session = TorchEngine(quantized).session(len(PROMPT), LENGTH, decode="compiled")
    generation = session.generate(PROMPT.numpy(), NEW_TOKENS)
    assert np.array_equal(generation.tokens, stock_tokens(quantized.model).numpy())
    assert generation.compile_s
    assert generation.compile_s > generation.ttft_s + sum(generation.step_s)
    session.close()
