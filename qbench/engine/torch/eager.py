"""Decoders whose step is an ordinary forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench.engine.base import KVCache
from qbench.engine.torch.attention import without_copies
from qbench.engine.torch.cache import PreallocatedLayer, preallocated_cache, quantized_cache
from qbench.engine.torch.step import empty_state, most_probable, next_token, state_name, takes_positions


class EagerDecoder:
    """Ordinary forwards over a preallocated cache, or over a quantized one, which grows."""

    def __init__(self, model: PreTrainedModel, seq_len: int, kv_cache: KVCache = "16bit") -> None:
        self._model, self._name = model, state_name(model)
        self._make = (
            partial(preallocated_cache, model, seq_len)
            if kv_cache == "16bit"
            else partial(quantized_cache, model, kv_cache)
        )
        self._cache = self._make()
        self._plain = all(isinstance(layer, PreallocatedLayer) for layer in self._cache.layers)
        self._positions = not self._plain and takes_positions(model)
        self._length = 0
        self._hidden: Tensor | None = None
        self.best: Tensor

    def hide(self, padding: Tensor) -> None:
        """Of the prompts that follow, hide what `padding`, bool [batch_size, prompt_tokens], marks on their left."""
        self._hidden = padding

    def prefill(self, prompt: Tensor) -> Tensor:
        self._length = 0
        if self._plain:
            self._cache.reset()
        else:  # Not every version of transformers forgets all of a sequence when it resets.
            self._cache = self._make()
        return self._forward(prompt)

    def extend(self, prompt: Tensor) -> Tensor:
        return self._forward(prompt)

    def step(self, token: Tensor) -> Tensor:
        with without_copies():
            return self._forward(token)

    def _forward(self, token: Tensor) -> Tensor:
        options = {}
        start, end = self._length, self._length + token.shape[1]
        self._length = end
        if self._hidden is not None:
            seen = torch.ones(len(token), end, dtype=torch.int64, device=token.device)
            seen[:, : self._hidden.shape[1]].masked_fill_(self._hidden, 0)
            positions = (seen.cumsum(1) - 1).clamp(min=0)
            options = {"attention_mask": seen, "position_ids": positions[:, start:]}
        elif self._positions:
            # Layers without keys do not count tokens, and some models ask the first layer of their cache.
            options["position_ids"] = torch.arange(start, end, device=token.device)[None]
        self.best, following = next_token(self._model, token, **{self._name: self._cache}, **options)
        return following


class RecurrentDecoder:
    """For models whose state has another name and no length, or is of a class of their own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._name = model, state_name(model)
        self._state: Any = None
        self.best: Tensor

    def prefill(self, prompt: Tensor) -> Tensor:
        self._state = empty_state(self._model)
        return self.step(prompt)

    def extend(self, prompt: Tensor) -> Tensor:
        return self.step(prompt)

    def step(self, token: Tensor) -> Tensor:
        output = self._model(input_ids=token, use_cache=True, logits_to_keep=1, **{self._name: self._state})
        self._state = output[self._name]
        self.best, following = most_probable(output.logits)
        return following
