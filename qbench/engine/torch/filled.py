"""Attention of one new token over the filled part of a cache of one length, by torch's FlashAttention on CUDA.

The cache is longer than the sequence. With a mask that says so, `scaled_dot_product_attention` gave every head of keys
one block on an H100, most of which then stands idle at batch 1. FlashAttention takes the lengths of sequences from the
device instead of a mask, and divides the keys of those with one token (flash decoding, `flash_api.cpp` in torch). Every
head of keys is a sequence here, in the cache as it is, and the heads of queries that share it are those of its query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache

from qbench.compat.transformers import StaticLayer
from qbench.engine.torch.attention import STOCK_ONLY, Attention, grouped, without_copies

MOST_WIDTH = 256
"""The widest head that FlashAttention takes; widths are multiples of 8."""


class Filled:
    """Attention over layers of a cache that has been written to, by their number; `grouped` in the other layers.

    `attention` is one object, for as long as a compiled step is to be valid.
    """

    def __init__(self, layers: Mapping[int, StaticLayer]) -> None:
        first = next(iter(layers.values()))
        batch, kv_heads, seq_len, _ = first.keys.shape
        places = torch.arange(batch * kv_heads + 1, dtype=torch.int32, device=first.keys.device)
        self._length = first.cumulative_length
        self._filled = torch.zeros_like(places[1:])
        self.attention = _attention(frozenset(layers), places, seq_len, self._filled)

    def before_step(self) -> None:
        """Count the token that the next step writes."""
        self._filled.copy_(self._length + 1)


def _attention(layers: frozenset[int], places: Tensor, seq_len: int, filled: Tensor) -> Attention:
    """A function as `grouped` for keys of seq_len tokens, of which those of sequence i begin at places[i] * seq_len."""
    starts = places * seq_len

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if module.layer_idx not in layers:
            return grouped(module, query, key, value, attention_mask, scaling, **options)
        batch, heads, _, width = query.shape
        rows = query.reshape(len(filled), -1, width)
        keys, values = (t.view(len(filled) * seq_len, 1, width) for t in (key, value))
        out, *_ = torch.ops.aten._flash_attention_forward(
            rows, keys, values, places, starts, 1, seq_len, 0.0, False, False, scale=scaling, seqused_k=filled
        )
        return out.view(batch, 1, heads, width), None

    return attention


def filled_attention(cache: StaticCache, windows: frozenset[int], step: Callable[[], object]) -> Filled | None:
    """Attention over the filled part of a cache that a prompt has been read into, None where no layer can take it.

    Args:
        cache: the layers of a cache of one length.
        windows: numbers of the layers that attend to the last tokens only, although the cache keeps all.
        step: reads one more token; run here, once, to see what the model's layers ask of attention.
    """
    layers = {
        number: layer
        for number, layer in enumerate(cache.layers)
        if type(layer) is StaticLayer and layer.is_initialized and number not in windows and _takes(layer)
    }
    if not layers:
        return None
    first = next(iter(layers.values()))
    asked: dict[int, list[bool]] = {}

    def watch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        stock = options.get("dropout") or any(options.get(name) is not None for name in (*STOCK_ONLY, "sliding_window"))
        whole = key.shape == value.shape == first.keys.shape
        shared = query.shape[1] > key.shape[1] and query.shape[2] == 1
        plain = not stock and whole and shared and _is_filled_part(mask, int(first.cumulative_length))
        asked.setdefault(getattr(module, "layer_idx", -1), []).append(plain)
        return grouped(module, query, key, value, mask, **options)

    with without_copies(watch):
        step()
    served = {number: layer for number, layer in layers.items() if asked.get(number) == [True]}
    return Filled(served) if served else None


def _takes(layer: StaticLayer) -> bool:
    """Whether FlashAttention is there for a layer's keys and values."""
    width = layer.keys.shape[-1]
    return width % 8 == 0 and width <= MOST_WIDTH and flash_attention_is_there(layer.keys)


def flash_attention_is_there(keys: Tensor) -> bool:
    """Whether torch was built with FlashAttention, and it runs on the device and in the dtype of keys."""
    return (
        keys.device.type == "cuda"
        and keys.dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(keys.device) >= (8, 0)
    )


def _is_filled_part(mask: Tensor | None, length: int) -> bool:
    """Whether a mask shows everyone the first `length` tokens and no others."""
    if mask is None or mask.dtype != torch.bool:
        return False
    return bool((mask == (torch.arange(mask.shape[-1], device=mask.device) < length)).all())
