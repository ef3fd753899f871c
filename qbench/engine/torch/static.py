"""Decoders whose step always computes the same: the cache has one length, and the sequence's length lives beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from qbench.engine.torch.attention import without_copies
from qbench.engine.torch.step import next_token


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
        _, token = next_token(self._model, prompt, past_key_values=self._cache)
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
        with without_copies():
            best, following = next_token(self._model, self._token, past_key_values=self._cache)
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
