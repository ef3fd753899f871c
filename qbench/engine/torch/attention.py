"""Attention of one new token over a cache that is longer than the sequence, without copies of keys and values.

Several heads of queries share a head of keys and values. Where there is a mask, transformers 5.17 repeats keys and
values for each of them, which at long contexts takes most of a step; 5.23 still does while torch.compile traces. For a
single token the queries of a group are as well the rows of one product with their head of keys as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from qbench.compat.transformers import attention, sdpa_attention_forward, sdpa_mask

NAME = "qbench_grouped"


def grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`: query [B, heads, n, D] over key and value [B, kv_heads, S, D].

    Returns [B, n, heads, D]. Of a single token, without a bias of positions or a mask of its own for each head, nothing
    is copied; everything else goes to transformers' function.
    """
    batch, heads, tokens, width = query.shape
    shared_mask = attention_mask is None or attention_mask.shape[1] == 1
    if tokens != 1 or not shared_mask or options.get("position_bias") is not None or options.get("dropout"):
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return out, None
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def without_copies(model: PreTrainedModel) -> Iterator[None]:
    """Decode by `grouped` where the model takes torch's attention, and leave the model as it was."""
    given = attention(model)
    if given == "sdpa":
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if given == "sdpa":
            model.set_attn_implementation(given)
