"""Decoders whose step always computes the same: the cache has one length, and the sequence's length lives beside it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench.engine.torch.attention import grouped, without_copies
from qbench.engine.torch.cache import static_cache, windows
from qbench.engine.torch.filled import Filled, filled_attention
from qbench.engine.torch.step import keeping, next_token
from qbench.errors import QbenchError, describe_fault


class GraphDecoder:
    """The decode step as a CUDA graph over a static cache.

    The position lives on the device (the cache counts it there), so one captured step serves every position.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, seq_len: int) -> None:
        self._model = model
        self._cache = static_cache(model, seq_len)
        self._state = keeping(model, self._cache)
        self._token = torch.zeros(batch_size, 1, dtype=torch.int64, device=model.device)
        self._next = torch.zeros_like(self._token)
        self._next_token: Callable[..., tuple[Tensor, Tensor]] = next_token
        self.best = torch.zeros(batch_size, 1, dtype=model.dtype, device=model.device)
        self._replay: Callable[[], None] | None = None
        self._filled: Filled | None = None

    def prefill(self, prompt: Tensor) -> Tensor:
        self._cache.reset()
        _, token = next_token(self._model, prompt, **self._state)
        if self._replay is None:
            # Capturing runs the step and moves the cache's position on: do it once, then read the prompt again.
            self._replay = self._capture()
            return self.prefill(prompt)
        return token

    def extend(self, prompt: Tensor) -> Tensor:
        _, token = next_token(self._model, prompt, **self._state)
        return token

    def step(self, token: Tensor) -> Tensor:
        assert self._replay is not None, "prefill comes first"
        self._token.copy_(token)
        self._replay()
        return self._next

    def _forward(self) -> None:
        if self._filled:
            self._filled.before_step()
        with without_copies(self._filled.attention if self._filled else grouped):
            best, following = self._next_token(self._model, self._token, **self._state)
        self.best.copy_(best)
        self._next.copy_(following)

    def _capture(self) -> Callable[[], None]:
        def step() -> object:
            return next_token(self._model, self._token, **self._state)

        self._filled = filled_attention(self._cache, windows(self._model), step)
        self._cache.reset()
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


class CompiledDecoder(GraphDecoder):
    """The decode step compiled by torch.compile as one graph, with every shape fixed; on CUDA, a CUDA graph of that.

    It is compiled here and now, so that no generation waits for it. Inductor keeps what it compiled on disk
    (`TORCHINDUCTOR_CACHE_DIR`) for the next process.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, seq_len: int, *, backend: str = "inductor") -> None:
        """Compile the step; `backend` is torch.compile's.

        Raises:
            QbenchError: the step cannot be compiled as a whole.
        """
        super().__init__(model, batch_size, seq_len)
        self._next_token = torch.compile(next_token, dynamic=False, fullgraph=True, backend=backend)
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                self.prefill(self._token)
                self.step(self._token)  # compiles it where nothing is captured
        except Exception as error:
            status, reason = describe_fault(error)
            if status == "oom":
                raise
            raise QbenchError(
                f"decode: compiled: torch.compile does not take the step of {type(model).__name__} with this backend "
                f"({reason}); use auto"
            ) from error
        self.compile_s = time.perf_counter() - start


def compiler_missing(device: str) -> str | None:
    """What torch.compile needs to build its code for a device, `cpu` or `cuda`, and is not here; None if it is."""
    variable, default, what = ("CC", "gcc", "C") if device == "cuda" else ("CXX", "g++", "C++")
    command = os.environ.get(variable, default)
    if shutil.which(command):
        return None
    return f"a {what} compiler, and there is no {command} here; install one (gcc and g++) or set {variable}"
