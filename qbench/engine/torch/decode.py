"""The one generation loop: prefill a prompt, then decode token by token over a preallocated cache.

Every backend and every cell runs through here, greedily, for a fixed number of tokens; an end-of-sequence token stops
nothing. Two ways to decode exist, and a run uses the same one for all of its cells:

- `eager`: each step is an ordinary forward. The cache is one buffer a layer, attention sees the filled part of it, so
  nothing is copied or masked as the sequence grows. A quantized cache (`kv_cache`) is always eager.
- `graph`: the step is captured once as a CUDA graph over transformers' `StaticCache` and then replayed, which takes
  Python and kernel launches out of the measurement.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from qbench.compat.transformers import Cache, DynamicLayer
from qbench.config.resolve import DecodeMode
from qbench.engine.base import Generation, KVCache
from qbench.engine.torch.attention import without_copies
from qbench.engine.torch.cache import quantized_cache
from qbench.errors import NotFiniteError, QbenchError


class Decoder(Protocol):
    """A model with a cache for a fixed batch size and length."""

    def prefill(self, prompt: Tensor) -> Tensor:
        """Forget everything, read prompt [batch_size, prompt_tokens], return the next token [batch_size, 1]."""

    def step(self, token: Tensor) -> Tensor:
        """Append token [batch_size, 1] and return the next one, valid until the following call."""

    @property
    def best(self) -> Tensor:
        """Logits [batch_size, 1] of the tokens that were returned last; NaN where any logit of a row is."""


def make_decoder(
    model: PreTrainedModel, mode: DecodeMode, batch_size: int, seq_len: int, kv_cache: KVCache = "16bit"
) -> Decoder:
    """A decoder for sequences of at most `seq_len` tokens.

    Raises:
        QbenchError: the model's cache cannot be quantized (see `qbench.engine.torch.cache`), or it keeps its state in
            a way that is not known here.
    """
    if mode == "graph":
        return GraphDecoder(model, batch_size, seq_len)
    if state_name(model) == "past_key_values":
        return EagerDecoder(model, seq_len, kv_cache)
    if kv_cache != "16bit":
        raise QbenchError(f"kv_cache: {type(model).__name__} keeps no keys and values to quantize; use 16bit")
    return RecurrentDecoder(model)


def state_name(model: PreTrainedModel) -> str:
    """The input of a model's forward that holds what it remembers of a sequence.

    Raises:
        QbenchError: it has none of those known here.
    """
    inputs = inspect.signature(type(model).forward).parameters
    found = next((name for name in STATE_NAMES if name in inputs), None)
    if found is None:
        raise QbenchError(
            f"{type(model).__name__} takes none of {', '.join(STATE_NAMES)}, so that it cannot generate token by token "
            "here; choose another model, or remove throughput, sustained and generations"
        )
    return found


@torch.inference_mode()
def generate(decoder: Decoder, prompt: Tensor, new_tokens: int) -> Generation:
    """Greedily generate `new_tokens` tokens after prompt [batch_size, prompt_tokens], timing each of them."""
    tokens = torch.empty(prompt.shape[0], new_tokens, dtype=torch.int64, device=prompt.device)
    clock = _clock(prompt.device)
    clock.mark()
    token = decoder.prefill(prompt)
    clock.mark()
    tokens[:, :1] = token
    for i in range(1, new_tokens):
        token = decoder.step(token)
        tokens[:, i : i + 1] = token
        clock.mark()
    ttft_s, *step_s = clock.intervals()
    if not decoder.best.isfinite().all():
        raise NotFiniteError("generation")
    return Generation(tokens.cpu().numpy(), ttft_s, tuple(step_s))


STATE_NAMES = ("past_key_values", "cache_params", "state")
"""What families call the state of a sequence: attention and hybrids, Mamba, RWKV."""


class EagerDecoder:
    """Ordinary forwards over a preallocated cache, or over a quantized one, which grows."""

    def __init__(self, model: PreTrainedModel, seq_len: int, kv_cache: KVCache = "16bit") -> None:
        self._model = model
        self._make = (
            partial(preallocated_cache, model, seq_len)
            if kv_cache == "16bit"
            else partial(quantized_cache, model, kv_cache)
        )
        self._cache = self._make()
        self._plain = all(isinstance(layer, PreallocatedLayer) for layer in self._cache.layers)
        self._positions = not self._plain and takes_positions(model)
        self._length = 0
        self.best: Tensor

    def prefill(self, prompt: Tensor) -> Tensor:
        self._length = 0
        if self._plain:
            self._cache.reset()
        else:  # Not every version of transformers forgets all of a sequence when it resets.
            self._cache = self._make()
        return self.step(prompt)

    def step(self, token: Tensor) -> Tensor:
        options = {}
        if self._positions:
            # Layers without keys do not count tokens, and some models ask the first layer of their cache.
            end = self._length + token.shape[1]
            options["position_ids"] = torch.arange(self._length, end, device=token.device)[None]
            self._length = end
        self.best, following = _next_token(self._model, token, past_key_values=self._cache, **options)
        return following


class RecurrentDecoder:
    """For models whose state has another name and no length."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._name = model, state_name(model)
        self._state: Any = None
        self.best: Tensor

    def prefill(self, prompt: Tensor) -> Tensor:
        self._state = DynamicCache(config=self._model.config) if self._name == "cache_params" else None
        return self.step(prompt)

    def step(self, token: Tensor) -> Tensor:
        output = self._model(input_ids=token, use_cache=True, logits_to_keep=1, **{self._name: self._state})
        self._state = output[self._name]
        self.best, following = _most_probable(output.logits)
        return following


class GraphDecoder:
    """The decode step as a CUDA graph over a static cache.

    The position lives on the device (`StaticCache` counts it there), so one captured step serves every position.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, seq_len: int) -> None:
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=seq_len)
        self._token = torch.zeros(batch_size, 1, dtype=torch.int64, device=model.device)
        self._next = torch.zeros_like(self._token)
        self.best = torch.zeros(batch_size, 1, dtype=model.dtype, device=model.device)
        self._replay: Callable[[], None] | None = None

    def prefill(self, prompt: Tensor) -> Tensor:
        self._cache.reset()
        _, token = _next_token(self._model, prompt, past_key_values=self._cache)
        if self._replay is None:
            # Capturing runs the step and moves the cache's position on: do it once, then read the prompt again.
            self._replay = self._capture()
            return self.prefill(prompt)
        return token

    def step(self, token: Tensor) -> Tensor:
        assert self._replay is not None, "prefill comes first"
        self._token.copy_(token)
        self._replay()
        return self._next

    def _forward(self) -> None:
        with without_copies(self._model):
            best, following = _next_token(self._model, self._token, past_key_values=self._cache)
        self.best.copy_(best)
        self._next.copy_(following)

    def _capture(self) -> Callable[[], None]:
        if self._token.device.type != "cuda":
            return self._forward
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward()  # lets libraries allocate workspaces, which a capture must not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._forward()
        replay: Callable[[], None] = graph.replay
        return replay


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
    """A cache with room for `seq_len` tokens; models with sliding or linear attention get transformers' own."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return DynamicCache(config=model.config)
    return Cache(layers=[PreallocatedLayer(seq_len) for _ in range(config.num_hidden_layers)])


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model's forward has `position_ids`; positions that are none of its inputs follow its cache."""
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _next_token(model: PreTrainedModel, input_ids: Tensor, **state: Any) -> tuple[Tensor, Tensor]:
    """The most probable token [batch_size, 1] and, before it, its logit."""
    return _most_probable(model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **state).logits)


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last of logits [batch_size, tokens, vocabulary]."""
    best, token = logits[:, -1].max(-1, keepdim=True)
    return best, token


class _HostClock:
    """For devices that finish a call before it returns."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]


class _CudaClock:
    """Device events; the host waits once, at the end."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def intervals(self) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(self._marks, self._marks[1:], strict=False)]


def _clock(device: torch.device) -> _HostClock | _CudaClock:
    return _CudaClock() if device.type == "cuda" else _HostClock()
