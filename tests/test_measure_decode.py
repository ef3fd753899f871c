"""The generation loop against transformers' own `generate`."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from qbench.engine.torch.attention import grouped
from qbench.engine.torch.cache import preallocated_cache
from qbench.engine.torch.decode import generate
from qbench.engine.torch.eager import EagerDecoder
from qbench.engine.torch.static import GraphDecoder
from qbench.engine.torch.step import keeping
from tests.support.operators import ShapesMade

NEW = 12


def reference(model: LlamaForCausalLM, prompt: torch.Tensor) -> torch.Tensor:
    out = model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return out[:, prompt.shape[1] :]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["eager", "graph"])
def test_tokens_are_those_of_transformers_generate(model: LlamaForCausalLM, kind: str, batch_size: int) -> None:
    """The graph decoder's captured step runs as it is where there is no CUDA; its arithmetic is the same."""
    prompt = torch.randint(3, 512, (batch_size, 17), generator=torch.Generator().manual_seed(7))
    room = 17 + NEW
    decoder = EagerDecoder(model, room) if kind == "eager" else GraphDecoder(model, batch_size, room)
    for _ in range(2):  # a decoder forgets its last sequence
        assert torch.equal(torch.from_numpy(generate(decoder, prompt, NEW).tokens), reference(model, prompt))


def test_a_captured_step_copies_no_keys_and_values(model: LlamaForCausalLM) -> None:
    """Nothing of [batch, heads, length, head_dim] is made; the model is left as it was."""
    config = LlamaConfig(
        **{**model.config.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    )
    other = LlamaForCausalLM(config).eval()
    other.set_attn_implementation("sdpa")
    decoder = GraphDecoder(other, 3, 29)
    prompt = torch.randint(3, 512, (3, 17), generator=torch.Generator().manual_seed(7))
    token = decoder.prefill(prompt)
    with torch.inference_mode(), ShapesMade() as made:
        decoder.step(token)
    assert (3, 4, 1, 16) in made.shapes  # queries
    assert not made.shapes & {(3, 4, 29, 16), (3, 2, 2, 29, 16)}  # keys or values, once for every head of queries
    assert other.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_of_a_token_against_float64(kv_heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 6, 1, 8)
    key, value = torch.randn(2, 2, kv_heads, 11, 8)
    mask = (torch.arange(11) < 7).expand(2, 1, 1, 11) if masked else None
    out, _ = grouped(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    keys, values = (t.double().repeat_interleave(6 // kv_heads, dim=1) for t in (key, value))
    scores = query.double() @ keys.transpose(2, 3) * 0.3
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    exact = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_generation_has_one_interval_for_every_token_but_the_first(model: LlamaForCausalLM) -> None:
    sample = generate(EagerDecoder(model, 32), torch.zeros(2, 4, dtype=torch.int64), 5)
    assert sample.tokens.shape == (2, 5)
    assert len(sample.step_s) == 4
    assert sample.ttft_s > 0
    assert min(sample.step_s) > 0


def test_end_of_sequence_stops_nothing(model: LlamaForCausalLM) -> None:
    """A model that can say nothing but its end-of-sequence token still generates every token asked for."""
    eos = model.config.eos_token_id
    stubborn = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 1})).eval()
    with torch.no_grad():
        stubborn.lm_head.weight.zero_()
        stubborn.model.norm.weight.zero_()
        stubborn.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(eos), 512).float())
    sample = generate(EagerDecoder(stubborn, 16), torch.zeros(1, 4, dtype=torch.int64), 6)
    assert sample.tokens.tolist() == [[eos] * 6]


def test_the_cache_is_allocated_once(model: LlamaForCausalLM) -> None:
    cache = preallocated_cache(model, 16)
    for length in (5, 1, 1):
        model(torch.zeros(1, length, dtype=torch.int64), **keeping(model, cache), use_cache=True)
    layer = cache.layers[0]
    assert layer.get_seq_length() == 7
    assert layer.keys.untyped_storage().nbytes() == 2 * 16 * 64 * 4  # kv_heads x seq_len x head_dim x float32


def test_only_layers_that_attend_to_everything_are_one_buffer() -> None:
    """Those with a sliding window forget tokens, which transformers' own layers do."""
    config = Gemma3TextConfig(
        num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    layers = preallocated_cache(SimpleNamespace(config=config), 16).layers
    assert [type(layer).__name__ for layer in layers] == [
        "DynamicSlidingWindowLayer", "PreallocatedLayer", "DynamicSlidingWindowLayer",
    ]  # fmt: skip


def test_models_with_sliding_attention_keep_their_own_cache() -> None:
    config = MistralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=512, sliding_window=8,
    )  # fmt: skip
    mistral = MistralForCausalLM(config).eval()
    prompt = torch.randint(3, 512, (1, 17))
    tokens = generate(EagerDecoder(mistral, 17 + NEW), prompt, NEW).tokens
    assert torch.equal(torch.from_numpy(tokens), reference(mistral, prompt))
