"""The next token, drawn from logits in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from qbench.engine.base import Floats
from qbench.serve.served import Alternatives, Sampling

Doubles = np.ndarray[Any, np.dtype[np.float64]]


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else seed % 2**64)

    def __call__(self, logits: Floats) -> int:
        """One token, by logits [vocab_size]."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        cumulated = probabilities(logits, self._sampling).cumsum()
        # Divided by its end, which sums miss 1 by; no draw is 1.
        return int(np.searchsorted(cumulated / cumulated[-1], self._random.random(), side="right"))


def probabilities(logits: Floats, sampling: Sampling) -> Doubles:
    """What a temperature above 0, top_k and top_p make of logits [vocab_size].

    softmax(logits / temperature), of which the `top_k` most probable tokens are kept (arXiv:1805.04833, section 5.4),
    and of these the most probable that reach `top_p` together (arXiv:1904.09751, equations 2 and 3), each time divided
    by their sum.
    """
    scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    found: Doubles = np.exp(scaled)
    found /= found.sum()
    if 0 < sampling.top_k < len(found):
        found[np.argsort(-found, kind="stable")[sampling.top_k :]] = 0
        found /= found.sum()
    if sampling.top_p < 1:
        order = np.argsort(-found, kind="stable")
        before = found[order].cumsum() - found[order]
        found[order[before >= sampling.top_p]] = 0
        found /= found.sum()
    return found


def log_probabilities(logits: Floats) -> Doubles:
    """log softmax of logits [vocab_size]."""
    shifted = logits.astype(np.float64) - logits.max()
    found: Doubles = shifted - np.log(np.exp(shifted).sum())
    return found


def alternatives(logprobs: Doubles, count: int) -> Alternatives:
    """The `count` most probable tokens, most probable first."""
    chosen = np.argpartition(-logprobs, min(count, len(logprobs)) - 1)[:count] if count else np.empty(0, np.int64)
    ordered = chosen[np.argsort(-logprobs[chosen], kind="stable")]
    return tuple((int(token), float(logprobs[token])) for token in ordered)
