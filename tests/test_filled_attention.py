"""Attention over the filled part of a cache of one length: what FlashAttention is handed. `test_families` has which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qbench.compat.transformers import StaticLayer
from qbench.engine.torch.decode import generate
from qbench.engine.torch.filled import Filled
from qbench.engine.torch.static import CompiledDecoder, GraphDecoder
from qbench.engine.torch.step import state_name
from tests.support.flash_attention import flash_attention_on_the_cpu
from tests.support.operators import ShapesMade

NEW = 8
PROMPT = torch.randint(3, 200, (3, 17), generator=torch.Generator().manual_seed(7))
LENGTH = 32


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries that FlashAttention was handed."""
    with flash_attention_on_the_cpu() as found:
        yield found


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def stock_tokens(model: LlamaForCausalLM) -> torch.Tensor:
    tokens = model.generate(PROMPT, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return tokens[:, PROMPT.shape[1] :]


@pytest.mark.parametrize("length", [1, 7, 11])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_of_a_token_against_float64(kv_heads: int, length: int) -> None:
    """Of 11 places `length` are filled; what is in the others does not count."""
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 6, 1, 8), torch.randn(2, 2, kv_heads, 11, 8)
    layer = StaticLayer(11)
    layer.update(key[:, :, : length - 1], value[:, :, : length - 1])
    over = Filled({5: layer})
    over.before_step()
    layer.update(key[:, :, length - 1 : length], value[:, :, length - 1 : length])
    layer.keys[:, :, length:] = torch.nan
    module = torch.nn.Module()
    module.layer_idx = 5
    out, _ = over.attention(module, query, layer.keys, layer.values, None, scaling=0.3)
    keys, values = (t[:, :, :length].double().repeat_interleave(6 // kv_heads, dim=1) for t in (key, value))
    exact = ((query.double() @ keys.transpose(2, 3) * 0.3).softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_step_reads_the_cache_as_it_is(model: LlamaForCausalLM, calls: list[tuple[int, ...]]) -> None:
    """One call a layer, no keys or values of another shape, and the tokens of transformers' `generate`."""
    decoder = GraphDecoder(model, 3, LENGTH)
    for _ in range(2):  # a decoder forgets its last sequence
        assert torch.equal(torch.from_numpy(generate(decoder, PROMPT, NEW).tokens), stock_tokens(model))
    calls.clear()
    with torch.inference_mode(), ShapesMade() as made:
        decoder.step(PROMPT[:, :1])
    assert calls == [(3 * 2, 2, 16)] * 2
    # The cache, and in it a sequence for every head of keys; nothing for every head of queries.
    assert {shape for shape in made.shapes if LENGTH in shape and 16 in shape} == {(3, 2, LENGTH, 16)}
    assert (3 * 2 * LENGTH, 1, 16) in made.shapes


def test_a_sequence_may_fill_the_cache(model: LlamaForCausalLM) -> None:
    """Capturing, which runs a step, needs no room beyond it."""
    decoder = GraphDecoder(model, 3, PROMPT.shape[1] + NEW)
    assert torch.equal(torch.from_numpy(generate(decoder, PROMPT, NEW).tokens), stock_tokens(model))


def test_a_mask_that_hides_a_token_is_kept(model: LlamaForCausalLM, calls: list[tuple[int, ...]]) -> None:
    hiding = LlamaForCausalLM(model.config).eval()
    hiding.load_state_dict(model.state_dict())
    forward = hiding.model.forward

    def without_the_third(*args: object, **kwargs: object) -> object:
        tokens = kwargs[state_name(model)].get_seq_length() + kwargs["input_ids"].shape[1]
        shown = torch.ones(3, int(tokens), dtype=torch.int64)
        shown[:, 2] = 0
        return forward(*args, **{**kwargs, "attention_mask": shown})

    hiding.model.forward = without_the_third
    decoder = GraphDecoder(hiding, 3, LENGTH)
    with torch.inference_mode():
        decoder.prefill(PROMPT)
        decoder.step(PROMPT[:, :1])
    assert not calls


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_step_reads_it_too(model: LlamaForCausalLM, backend: str, calls: list[tuple[int, ...]]) -> None:
    torch.compiler.reset()
    decoder = CompiledDecoder(model, 3, LENGTH, backend=backend)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(torch.from_numpy(generate(decoder, PROMPT, NEW).tokens), stock_tokens(model))
        calls.clear()
        with torch.inference_mode():
            decoder.step(PROMPT[:, :1])
    assert calls == [(3 * 2, 2, 16)] * 2
    torch.compiler.reset()
