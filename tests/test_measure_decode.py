"""The generation loop against transformers' own `generate`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from qbench.engine.torch.decode import EagerDecoder, GraphDecoder, generate, preallocated_cache

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
        model(torch.zeros(1, length, dtype=torch.int64), past_key_values=cache, use_cache=True)
    layer = cache.layers[0]
    assert layer.get_seq_length() == 7
    assert layer.keys.untyped_storage().nbytes() == 2 * 16 * 64 * 4  # kv_heads x seq_len x head_dim x float32


def test_models_with_sliding_attention_keep_their_own_cache() -> None:
    config = MistralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=512, sliding_window=8,
    )  # fmt: skip
    mistral = MistralForCausalLM(config).eval()
    prompt = torch.randint(3, 512, (1, 17))
    tokens = generate(EagerDecoder(mistral, 17 + NEW), prompt, NEW).tokens
    assert torch.equal(torch.from_numpy(tokens), reference(mistral, prompt))
