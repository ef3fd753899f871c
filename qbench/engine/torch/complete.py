"""Continuing prompts of different lengths side by side, until each has come to its end.

Shorter prompts are padded on the left, as `generate` of transformers does: a mask hides the padding, and positions
count from a prompt's first token. Where that would change a continuation (see `can_pad`), only prompts of one length
are continued together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench.compat.transformers import attention
from qbench.engine.base import KVCache, Stop, Tokens
from qbench.engine.torch.decode import make_decoder
from qbench.engine.torch.eager import EagerDecoder
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.step import forward_inputs, takes_positions
from qbench.errors import NotFiniteError


@torch.inference_mode()
def complete(
    loaded: LoadedModel, prompts: Sequence[Tokens], new_tokens: int, stop: Stop, kv_cache: KVCache = "16bit"
) -> list[Tokens]:
    """See `qbench.engine.base.Engine.complete`; decoding is eager."""
    found: dict[int, Tokens] = {}
    for members in _together(loaded.model, prompts):
        continued = _continue(loaded, [prompts[i] for i in members], new_tokens, stop, kv_cache)
        found |= dict(zip(members, continued, strict=True))
    return [found[i] for i in range(len(prompts))]


def _continue(
    loaded: LoadedModel, prompts: Sequence[Tokens], new_tokens: int, stop: Stop, kv_cache: KVCache
) -> list[Tokens]:
    tokens, seen = pad(prompts)
    decoder = make_decoder(loaded.model, "eager", len(prompts), tokens.shape[1] + new_tokens, kv_cache)
    if isinstance(decoder, EagerDecoder) and not seen.all():
        decoder.hide(~seen.to(loaded.device))
    ends = end_tokens(loaded)
    found: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    token = decoder.prefill(tokens.to(loaded.device))
    for step in range(new_tokens):
        if step:
            token = decoder.step(token)
        if not decoder.best.isfinite().all():
            raise NotFiniteError("generation")
        following = token[:, 0].tolist()
        for i in tuple(going):
            found[i].append(following[i])
            if following[i] in ends or stop(found[i]):
                going.remove(i)
        if not going:
            break
    return [tuple(continuation) for continuation in found]


def pad(prompts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Prompts as int64 [prompts, longest], zeros on their left, and where they stand: bool of the same shape."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    seen = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = True
    return tokens, seen


def end_tokens(loaded: LoadedModel) -> set[int]:
    """The tokens that end a text, by generation_config.json and by the tokenizer."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    own = loaded.tokenizer.eos_token_id if loaded.tokenizer else None
    listed = named if isinstance(named, list) else [named]
    return {token for token in (*listed, own) if token is not None}


def can_pad(model: PreTrainedModel) -> bool:
    """Whether a prompt's continuation is the same behind padding that a mask hides.

    Not where code of the model's own may ignore the mask, a recurrent state would take the padding in, or the longest
    sequence of a batch sets the positions of all (dynamic NTK, LongRoPE).
    """
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__module__.startswith("transformers.models.")
        and takes_positions(model)
        and "attention_mask" in forward_inputs(model)
        and attention(model) in ("sdpa", "eager")
        and not model._is_stateful
        and all(kind in ATTENTION_LAYERS for kind in getattr(config, "layer_types", None) or ())
        and rope.get("rope_type", "default") not in ("dynamic", "longrope")
    )


ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers, by `layer_types` of a configuration, that have no state but keys and values."""


def _together(model: PreTrainedModel, prompts: Sequence[Tokens]) -> Iterator[list[int]]:
    """The numbers of prompts that are continued side by side."""
    if can_pad(model):
        yield list(range(len(prompts)))
        return
    for length in sorted({len(prompt) for prompt in prompts}):
        yield [i for i, prompt in enumerate(prompts) if len(prompt) == length]
