"""Sequences that come and go in one llama.cpp context."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qbench.engine import base
from qbench.engine.base import Floats
from qbench.engine.llama_cpp.context import Batch, Context, Tokens


class LlamaCppStepper:
    """See `qbench.engine.base.Stepper`."""

    def __init__(self, context: Context, sequences: int) -> None:
        self._context = context
        self._free = set(range(sequences))
        self._lengths: dict[int, int] = {}

    def join(self, prompt: base.Tokens) -> tuple[int, Floats]:
        """The prompt in pieces; only its last token's logits are computed."""
        sequence, count = min(self._free), len(prompt)
        positions = np.arange(count)
        tokens = Tokens(np.array(prompt), positions, [(sequence,)] * count, positions == count - 1)
        try:
            [(_, logits)] = self._context.read(tokens)
        except Exception:
            self._context.drop(sequence)
            raise
        self._free.remove(sequence)
        self._lengths[sequence] = count
        return sequence, logits[0].copy()

    def step(self, tokens: Mapping[int, int]) -> Floats:
        """One `llama_decode` for all of them."""
        ids = np.fromiter(tokens.values(), np.int64, len(tokens))
        positions = np.array([self._lengths[sequence] for sequence in tokens])
        sequences = [(sequence,) for sequence in tokens]
        logits = self._context.decode(Batch(Tokens(ids, positions, sequences, np.ones(len(ids), bool)))).copy()
        for sequence in tokens:
            self._lengths[sequence] += 1
        return logits

    def leave(self, sequence: int) -> None:
        """Its cells are free."""
        self._context.drop(sequence)
        del self._lengths[sequence]
        self._free.add(sequence)

    def close(self) -> None:
        """Give the context back."""
        self._context.close()
