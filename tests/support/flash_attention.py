"""torch's FlashAttention, which runs on CUDA only: its operator in float64 on the CPU, from its description alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from qbench.engine.torch import filled


def _attention(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, max_q: int, max_k: int,
    dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: float | None = None, seqused_k: Tensor,
    **other: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Sequences of query [tokens, heads, D] over those of key and value [tokens, kv_heads, D], and of the latter the
    first `seqused_k` each.
    """
    assert query_starts.dtype == key_starts.dtype == seqused_k.dtype == torch.int32
    assert seqused_k.is_contiguous()
    assert (dropout_p, is_causal, return_debug_mask) == (0, False, False)
    assert not any(value is not None for value in other.values())
    out = torch.full_like(query, torch.nan)
    for i, used in enumerate(seqused_k.tolist()):
        first, last = query_starts[i : i + 2].tolist()
        start, end = key_starts[i : i + 2].tolist()
        assert last - first <= max_q
        assert used <= end - start <= max_k
        q = query[first:last].double().transpose(0, 1)
        k, v = (t[start : start + used].double().permute(1, 2, 0) for t in (key, value))
        weights = (q @ k * (scale or q.shape[-1] ** -0.5)).softmax(-1)
        out[first:last] = (weights @ v.transpose(1, 2)).transpose(0, 1).to(out.dtype)
    nothing = query.new_empty(0)
    lse = torch.zeros(query.shape[1], query.shape[0])
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64), nothing


@contextmanager
def flash_attention_on_the_cpu() -> Iterator[list[tuple[int, ...]]]:
    """Meanwhile, decoders with a cache of one length find FlashAttention here; yields the shapes of its queries."""
    calls: list[tuple[int, ...]] = []

    def noted(query: Tensor, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        calls.append(tuple(query.shape))
        return _attention(query, *args, **options)

    with torch.library._scoped_library("aten", "IMPL") as library, pytest.MonkeyPatch.context() as patch:
        library.impl("_flash_attention_forward", noted, "CPU")
        patch.setattr(filled, "flash_attention_is_there", lambda keys: True)
        yield calls
