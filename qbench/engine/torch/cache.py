"""Caches of keys and values: one buffer a layer, or integers.

In 16 bit and for eager decoding, a layer that attends to everything is one buffer, allocated at the first prefill, into
which a step writes its token: nothing is copied. Layers with a sliding window and recurrent ones are transformers' own.

8 and 4 bits are transformers' own quantized cache, with HQQ's integers. `QuantizedCache(backend="hqq")` quantizes the
whole prompt at once, while attention sees it in 16 bit, then keeps new tokens in 16 bit until there are `RESIDUAL` of
them and quantizes everything again. Every step dequantizes a whole layer and copies it in front of the new token, so
this cache saves memory and costs time. Of transformers' other backends quanto has no 8 bits here, and fp8 no integers.
Groups run along a head's channels, as transformers' documentation advises for HQQ (axis 1), see
`qbench.model.kv_cache`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, QuantizedCache, StaticCache

from qbench.compat.transformers import Cache, DynamicLayer, StaticLayer, StaticSlidingWindowLayer
from qbench.errors import QbenchError
from qbench.model.kv_cache import BITS, INSTALL, RESIDUAL, group_size


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer of the cache in one buffer [batch_size, kv_heads, seq_len, head_dim], filled from the left."""

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        self._seq_len = seq_len
        self._length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys = self._buffer(key_states)
        self._values = self._buffer(value_states)
        self.keys, self.values = self._keys[:, :, :0], self._values[:, :, :0]
        self.is_initialized = True

    def _buffer(self, states: Tensor) -> Tensor:
        batch_size, heads, _, head_dim = states.shape
        return states.new_empty(batch_size, heads, self._seq_len, head_dim)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states [batch_size, kv_heads, n, head_dim] and return the filled part of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self._length = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def reset(self) -> None:
        """Forget the sequence, keep the memory."""
        self._length = 0
        if self.is_initialized:
            self.keys, self.values = self._keys[:, :, :0], self._values[:, :, :0]


def preallocated_cache(model: PreTrainedModel, seq_len: int) -> Cache:
    """An empty cache with room for `seq_len` tokens in the layers that attend to all of them."""
    cache = DynamicCache(config=model.config)
    cache.layers = [PreallocatedLayer(seq_len) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def static_cache(model: PreTrainedModel, seq_len: int) -> StaticCache:
    """An empty cache of one length, whose layers count tokens on the device.

    transformers' own layers for sliding windows count them in Python, which a captured step would not do again: here
    such layers keep all tokens, and the window is the mask's.
    """
    cache = StaticCache(config=model.config, max_cache_len=seq_len)
    cache.layers = [
        StaticLayer(seq_len) if type(layer) is StaticSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


def windows(model: PreTrainedModel) -> frozenset[int]:
    """Numbers of the layers that attend to the last tokens only, or to those of their chunk."""
    layers = StaticCache(config=model.config, max_cache_len=1).layers
    return frozenset(number for number, layer in enumerate(layers) if type(layer) is StaticSlidingWindowLayer)


def quantized_cache(model: PreTrainedModel, kv_cache: Literal["int8", "int4"]) -> Cache:
    """An empty cache that grows.

    Raises:
        QbenchError: HQQ is not installed, or the model's layers do not all attend to everything.
    """
    if find_spec("hqq") is None:
        raise QbenchError(f"kv_cache: {kv_cache} needs hqq; {INSTALL}")
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        return QuantizedCache(
            backend="hqq",
            config=config,
            nbits=BITS[kv_cache],
            axis_key=1,
            axis_value=1,
            q_group_size=group_size(heads, width),
            residual_length=RESIDUAL,
        )
    except ValueError as error:
        raise QbenchError(f"kv_cache: {kv_cache}: {error}; use 16bit") from error
