"""Log-probabilities from logits, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from qbench.engine.base import Floats, Ints


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities [rows, vocabulary]; NaN where a logit of the row is."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def most_probable(logprobs: Floats, k: int) -> Ints:
    """The k most probable words of each row, [rows, k], the most probable first."""
    k = min(k, logprobs.shape[1])
    found = np.argpartition(-logprobs, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(logprobs, found, 1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, 1), np.int64)


def outline(logprobs: Floats, words: Ints) -> Floats:
    """Log-probabilities [rows, k + 1] of `words` [rows, k] and, last, of all others together."""
    known = np.take_along_axis(logprobs, words, 1)
    others: np.ndarray[Any, Any] = logprobs.copy()
    np.put_along_axis(others, words, -np.inf, 1)
    # Of words that have all of the mass nothing is left: log 0.
    with np.errstate(divide="ignore"):
        most = others.max(1, keepdims=True)
        rest = most + np.log(np.exp(others - most).sum(1, keepdims=True))
    return np.asarray(np.concatenate([known, rest], 1), np.float32)
