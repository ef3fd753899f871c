"""The one generation loop: prefill a prompt, then decode token by token over a preallocated cache.

Every backend and every cell runs through here, greedily, for a fixed number of tokens; an end-of-sequence token stops
nothing. Three ways to decode exist, and a run uses the same one for all of its cells:

- `eager`: each step is an ordinary forward. The cache is one buffer a layer, attention sees the filled part of it, so
  nothing is copied or masked as the sequence grows. A quantized cache (`kv_cache`) is always eager.
- `graph`: the step is captured once as a CUDA graph over transformers' `StaticCache` and then replayed, which takes
  Python and kernel launches out of the measurement.
- `compiled`: the step over that cache is compiled by torch.compile, which fuses the small operations between the
  linears; on CUDA the compiled step is captured in turn.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench.compat.transformers import takes_dynamic_cache
from qbench.config.resolve import DecodeMode
from qbench.engine.base import Generation, KVCache
from qbench.engine.torch.eager import EagerDecoder, RecurrentDecoder
from qbench.engine.torch.static import CompiledDecoder, GraphDecoder
from qbench.engine.torch.step import CACHE_NAMES, state_name
from qbench.errors import NotFiniteError, QbenchError
from qbench.model.kv_cache import FILL_TOKENS


class Decoder(Protocol):
    """A model with a cache for a fixed batch size and length."""

    def prefill(self, prompt: Tensor) -> Tensor:
        """Forget everything, read prompt [batch_size, prompt_tokens], return the next token [batch_size, 1]."""

    def extend(self, prompt: Tensor) -> Tensor:
        """Append prompt [batch_size, prompt_tokens] to what has been read, return the next token [batch_size, 1]."""

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
        QbenchError: the model's cache cannot be quantized (see `qbench.engine.torch.cache`), it keeps its state in a
            way that is not known here, or its step cannot be compiled.
    """
    if mode == "graph":
        return GraphDecoder(model, batch_size, seq_len)
    if mode == "compiled":
        return CompiledDecoder(model, batch_size, seq_len)
    if state_name(model) in CACHE_NAMES and takes_dynamic_cache(model):
        return EagerDecoder(model, seq_len, kv_cache)
    if kv_cache != "16bit":
        raise QbenchError(f"kv_cache: {type(model).__name__} keeps no keys and values that can be quantized; use 16bit")
    return RecurrentDecoder(model)


@torch.inference_mode()
def generate(decoder: Decoder, prompt: Tensor, new_tokens: int, after: Tensor | None = None) -> Generation:
    """Greedily generate `new_tokens` tokens after prompt [batch_size, prompt_tokens], timing each of them.

    `after` [batch_size, depth] is read before, uncounted.
    """
    if after is not None:
        _fill(decoder, after)
    tokens = torch.empty(prompt.shape[0], new_tokens, dtype=torch.int64, device=prompt.device)
    clock = _clock(prompt.device)
    clock.mark()
    token = decoder.prefill(prompt) if after is None else decoder.extend(prompt)
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


def _fill(decoder: Decoder, tokens: Tensor) -> None:
    """Forget everything and read tokens in pieces, so that a long context takes no more memory than its cache does."""
    first, *others = torch.split(tokens, FILL_TOKENS, dim=1)
    decoder.prefill(first)
    for piece in others:
        decoder.extend(piece)


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
