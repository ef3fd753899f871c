"""Attention of one new token without copies of keys and values.

Several heads of queries share a head of keys and values. Where there is a mask, transformers repeats keys and values
for each of them (5.17; 5.23 while torch.compile traces), which at long contexts takes most of a step. Where there is
none, it lets torch share them (`enable_gqa`), whose kernel for CPUs reads a head once for every head of queries. For a
single token the queries of a group are as well the rows of one product with their head of keys as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qbench.compat.transformers import sdpa_attention_forward

Attention = Callable[..., tuple[Tensor, None]]
"""Called as `grouped` is."""

STOCK_ONLY = ("position_bias", "softcap", "cache")
"""Options of `sdpa_attention_forward` that `grouped` leaves to it, as it does dropout."""


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

    Returns [B, n, heads, D]. Of a single token, nothing is copied; several, and `STOCK_ONLY` options, go to
    transformers' function.
    """
    batch, heads, tokens, width = query.shape
    if tokens != 1 or options.get("dropout") or any(options.get(name) is not None for name in STOCK_ONLY):
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return out, None
    kv_heads, length = key.shape[1:3]
    rows = query.reshape(batch, kv_heads, heads // kv_heads, width)
    if attention_mask is not None and attention_mask.shape[1] == heads:
        attention_mask = attention_mask.reshape(-1, kv_heads, heads // kv_heads, length)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1]), None


@contextmanager
def without_copies(attention: Attention = grouped) -> Iterator[None]:
    """Meanwhile, models that call torch's attention (sdpa) do so through `attention`."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
