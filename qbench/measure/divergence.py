"""How far a cell's predictions are from those of the 16-bit cell, token by token, without keeping whole vocabularies.

The 16-bit cell leaves, for every token that is predicted, the log-probabilities of its k most probable words and of all
others together: an outline of k + 1 classes. Every other cell outlines its own predictions in the same classes, and

    KL = sum over the classes of p (log p - log q)

is at most the KL divergence over the whole vocabulary, by the log-sum inequality: how the mass of the last class is
spread among its words is not seen. Natural logarithms throughout; figures are in nats.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qbench.analysis import stats
from qbench.errors import QbenchError
from qbench.measure.base import Reference


class Observer(Protocol):
    """Sees every prediction as it is made."""

    def see(self, window: int, rows: slice, logprobs: Tensor, truth: Tensor) -> None:
        """Predictions `logprobs` float32 [rows, vocabulary] of a window, and log p of the true tokens, [rows]."""

    def end(self) -> dict[str, float | int | None]:
        """All are seen: the columns of the row that this gives."""


def observer(tokens: Tensor, top_k: int, reference: Reference) -> Observer:
    """A recorder for the 16-bit cell, a comparison for any other; `tokens` are all windows, [windows, window].

    Raises:
        QbenchError: there is nothing to compare with, or it was made with another model, text or setting.
    """
    facts = {
        "window": str(tokens.shape[1]),
        "windows": str(len(tokens)),
        "tokens_sha256": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
        "top_k": str(top_k),
        "model_fingerprint": reference.model_fingerprint,
    }
    if reference.own:
        return Recorder(tokens, top_k, reference.path, facts)
    return Comparison(tokens, top_k, reference, facts)


class Recorder:
    """Writes the outlines of the 16-bit cell, about 8 k bytes a token, and the facts that they are true of.

    A safetensors file: `words` int32 [windows, window - 1, k], `outlines` float32 [windows, window - 1, k + 1] and
    `truth`, the true tokens' log-probabilities, float32 [windows, window - 1]. In float16, a token's KL would be wrong
    by 2e-5 on average, and its 99th percentile for 8-bit weights of the demo model 2e-4 instead of 8e-5.
    """

    def __init__(self, tokens: Tensor, top_k: int, path: Path, facts: dict[str, str]) -> None:
        self._top_k, self._path, self._facts = top_k, path, facts
        self._shape = (len(tokens), tokens.shape[1] - 1)
        self._kept: dict[str, Tensor] = {}

    def see(self, window: int, rows: slice, logprobs: Tensor, truth: Tensor) -> None:
        words = logprobs.topk(min(self._top_k, logprobs.shape[1])).indices
        seen = {"words": words.int(), "outlines": outline(logprobs, words), "truth": truth}
        for name, values in seen.items():
            if name not in self._kept:
                self._kept[name] = torch.empty(*self._shape, *values.shape[1:], dtype=values.dtype)
            self._kept[name][window, rows] = values.cpu()

    def end(self) -> dict[str, float | int | None]:
        """Write the file, whole or not at all; the 16-bit cell has no divergence from itself."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.partial")
        save_file(self._kept, partial, metadata=self._facts)
        partial.replace(self._path)
        return {}


class Comparison:
    """Holds predictions against what the 16-bit cell has left."""

    def __init__(self, tokens: Tensor, top_k: int, reference: Reference, facts: dict[str, str]) -> None:
        self._kept = _open(reference, facts)
        self._top_k = top_k
        shape = (len(tokens), tokens.shape[1] - 1)
        self._kl, self._agree, self._delta = (np.full(shape, np.nan) for _ in range(3))

    def see(self, window: int, rows: slice, logprobs: Tensor, truth: Tensor) -> None:
        words, expected, expected_truth = (
            self._kept.get_slice(name)[window : window + 1, rows][0].to(logprobs.device)
            for name in ("words", "outlines", "truth")
        )
        words = words.long()
        self._kl[window, rows] = kl_divergence(expected, outline(logprobs, words)).cpu().numpy()
        # Logits of 16 bits tie: the expected word is right wherever none is more probable.
        first = logprobs.gather(1, words[:, :1])[:, 0]
        self._agree[window, rows] = (first == logprobs.amax(1)).cpu().numpy()
        self._delta[window, rows] = (truth.double() - expected_truth.double()).cpu().numpy()

    def end(self) -> dict[str, float | int | None]:
        """Means over all tokens with their standard errors."""
        (kl, kl_stderr), (top1, top1_stderr), (delta, delta_stderr) = (
            stats.mean_of_windows(values) for values in (self._kl, self._agree, self._delta)
        )
        return {
            "kl_mean": kl,
            "kl_stderr": kl_stderr,
            "kl_p99": float(np.quantile(self._kl, 0.99)),
            "top1_agreement": top1,
            "top1_stderr": top1_stderr,
            "delta_logprob_mean": delta,
            "delta_logprob_stderr": delta_stderr,
            "top_k": self._top_k,
        }


def outline(logprobs: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities [rows, k + 1] of `words` [rows, k] and, last, of all others together.

    The last is a sum over the others, not 1 less that of the words: of that difference, next to certainty, nothing
    would be left.
    """
    others = logprobs.scatter(1, words, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logprobs.gather(1, words), others], 1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [rows, classes], in nats, float64 [rows]. A class without p adds nothing."""
    p, q = p.double(), q.double()
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum(1)


def _open(reference: Reference, facts: dict[str, str]) -> Any:
    """The 16-bit cell's file, if it is true of the same facts."""
    path, again = reference.path, "start over with --fresh"
    if not path.is_file():
        raise QbenchError(
            f"measure.perplexity.divergence: the cell {reference.label} has left no log-probabilities to compare with; "
            "mend it and run again, or set measure.perplexity.divergence to false"
        )
    try:
        kept: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise QbenchError(f"{path}: damaged ({error}); {again}") from error
    found = kept.metadata() or {}
    other = [key for key in facts if found.get(key) != facts[key]]
    if other:
        key = other[0]
        raise QbenchError(
            f"{path}: the log-probabilities of {reference.label} were made with {key} {found.get(key)}, "
            f"not {facts[key]}; {again}"
        )
    return kept
