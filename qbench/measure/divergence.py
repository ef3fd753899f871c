"""How far a cell's predictions are from those of the 16-bit cell, token by token, without keeping whole vocabularies.

The 16-bit cell leaves, for every token that is predicted, the log-probabilities of its k most probable words and of all
others together: an outline of k + 1 classes. Every other cell outlines its own predictions in the same classes, and

    KL = sum over the classes of p (log p - log q)

is at most the KL divergence over the whole vocabulary, by the log-sum inequality: how the mass of the last class is
spread among its words is not seen. What is missing is, by the chain rule (T. M. Cover and J. A. Thomas, Elements of
Information Theory, 2.5), exactly

    (mass of the last class by p) × KL(p || q, each among the words of that class alone).

The mass is known and reported. The second factor is not, and has no bound, since q may give a word next to nothing.
With the whole vocabulary nothing is missing: the 16-bit cell leaves the log-probabilities of every word, in a file of
4 bytes a token and word, and KL is the sum over the vocabulary, some rows at a time. That is done where it is asked
for, and where the file stays small. Natural logarithms throughout; figures are in nats.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qbench.analysis import formulas
from qbench.config import PerplexityConfig
from qbench.engine.base import Floats, Ints, Pieces, Scores
from qbench.errors import QbenchError
from qbench.measure.base import Reference

TOP_K = 64
"""Words of an outline unless `top_k` is given."""

SMALL_BYTES = 256 << 20
"""Of whole vocabularies, up to which they are kept without being asked for."""


class Observer(Protocol):
    """Sees every window as it is scored."""

    @property
    def top_k(self) -> int | None:
        """Most probable words that it wants outlined."""

    def words(self, window: int) -> Ints | None:
        """Words [window - 1, k] that it wants outlined instead."""

    def whole(self, window: int) -> Pieces | None:
        """What takes the log-probabilities of every word; None where outlines are enough."""

    def see(self, window: int, scores: Scores) -> None:
        """The scores of a window, with outlines."""

    def end(self) -> dict[str, float | int | None]:
        """All are seen: the columns of the row that this gives."""


def observer(tokens: Ints, config: PerplexityConfig, vocabulary: int, reference: Reference) -> Observer:
    """A recorder for the 16-bit cell, a comparison for any other; `tokens` are all windows, [windows, window].

    Raises:
        QbenchError: there is nothing to compare with, or it was made with another model, text or setting.
    """
    shape = (len(tokens), tokens.shape[1] - 1, vocabulary)
    whole = is_whole(config, 4 * math.prod(shape))
    top_k = 1 if whole else config.top_k or TOP_K  # the most probable word is compared in any case
    facts = {
        "window": str(tokens.shape[1]),
        "windows": str(len(tokens)),
        "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "top_k": str(top_k),
        "model_fingerprint": reference.model_fingerprint,
    }
    if whole:
        facts["vocabulary"] = str(vocabulary)
        if reference.own:
            return WholeRecorder(tokens, reference.path, facts, shape)
        return WholeComparison(tokens, reference, facts, shape)
    if reference.own:
        return Recorder(tokens, top_k, reference.path, facts)
    return Comparison(tokens, top_k, reference, facts)


def is_whole(config: PerplexityConfig, size: int) -> bool:
    """Whether predictions are compared over the whole vocabulary, of which the 16-bit cell would keep `size` bytes."""
    return config.divergence == "full" or (config.top_k is None and size <= SMALL_BYTES)


def files(reference: Path) -> list[Path]:
    """What the 16-bit cell has left: `reference`, and the whole vocabularies that it speaks of."""
    try:
        with safe_open(reference, framework="numpy") as file:
            whole = "vocabulary" in (file.metadata() or {})
    except (OSError, SafetensorError):  # said where it is read
        whole = False
    return [reference, whole_file(reference)] if whole else [reference]


def whole_file(reference: Path) -> Path:
    """Where the log-probabilities of every word are, beside the file of outlines: float32 [windows, window - 1, words].

    In NumPy's format, so that a window is read without the others.
    """
    return reference.with_suffix(".whole.npy")


class Recorder:
    """Writes the outlines of the 16-bit cell, about 8 k bytes a token, and the facts that they are true of.

    A safetensors file: `words` int32 [windows, window - 1, k], `outlines` float32 [windows, window - 1, k + 1] and
    `truth`, the true tokens' log-probabilities, float32 [windows, window - 1]. In float16, a token's KL would be wrong
    by 2e-5 on average, and its 99th percentile for 8-bit weights of the demo model 2e-4 instead of 8e-5.
    """

    def __init__(self, tokens: Ints, top_k: int, path: Path, facts: dict[str, str]) -> None:
        self.top_k = top_k
        self._path, self._facts = path, facts
        self._windows = len(tokens)
        self._kept: dict[str, np.ndarray[Any, Any]] = {}

    def words(self, window: int) -> None:
        """The most probable ones, whatever they are."""

    def whole(self, window: int) -> Pieces | None:
        """Outlines are enough."""
        return None

    def see(self, window: int, scores: Scores) -> None:
        """Keep the window's outlines."""
        assert scores.words is not None
        assert scores.outlines is not None
        seen = {"words": scores.words.astype(np.int32), "outlines": scores.outlines, "truth": scores.truth}
        for name, values in seen.items():
            if name not in self._kept:
                self._kept[name] = np.empty((self._windows, *values.shape), dtype=values.dtype)
            self._kept[name][window] = values

    def end(self) -> dict[str, float | int | None]:
        """Write the file, whole or not at all; the 16-bit cell has no divergence from itself."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.partial")
        save_file(self._kept, partial, metadata=self._facts)
        partial.replace(self._path)
        whole_file(self._path).unlink(missing_ok=True)  # of other settings
        return {}


class Comparison:
    """Holds predictions against what the 16-bit cell has left."""

    top_k = None

    def __init__(self, tokens: Ints, top_k: int, reference: Reference, facts: dict[str, str]) -> None:
        self._kept = _open(reference, facts)
        self._top_k = top_k
        shape = (len(tokens), tokens.shape[1] - 1)
        self._kl, self._agree, self._delta, self._tail = (np.full(shape, np.nan) for _ in range(4))

    def words(self, window: int) -> Ints:
        """Those of the 16-bit cell."""
        return self._of("words", window).astype(np.int64)

    def whole(self, window: int) -> Pieces | None:
        """Outlines are enough."""
        return None

    def see(self, window: int, scores: Scores) -> None:
        """Compare the window's outlines with those of the 16-bit cell."""
        assert scores.best is not None
        assert scores.outlines is not None
        own = self._of("outlines", window)
        self._kl[window] = kl_divergence(own, scores.outlines)
        self._tail[window] = np.exp(own[:, -1].astype(np.float64))
        # Logits of 16 bits tie: the expected word is right wherever none is more probable.
        self._agree[window] = scores.outlines[:, 0] == scores.best
        self._delta[window] = scores.truth.astype(np.float64) - self._of("truth", window).astype(np.float64)

    def _of(self, name: str, window: int) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._kept.get_slice(name)[window : window + 1][0]
        return found

    def end(self) -> dict[str, float | int | None]:
        """Means over all tokens with their standard errors."""
        (kl, kl_stderr), (top1, top1_stderr), (delta, delta_stderr) = (
            formulas.mean_of_windows(values) for values in (self._kl, self._agree, self._delta)
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
            "tail_mass_mean": float(self._tail.mean()),
        }


class WholeRecorder(Recorder):
    """Writes the log-probabilities of every word, too."""

    def __init__(self, tokens: Ints, path: Path, facts: dict[str, str], shape: tuple[int, int, int]) -> None:
        super().__init__(tokens, 1, path, facts)
        self._file = whole_file(path)
        self._partial = self._file.with_name(f".{self._file.name}.partial")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._all = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]  # numpy's
            self._partial, mode="w+", dtype=np.float32, shape=shape
        )

    def whole(self, window: int) -> Pieces:
        """Writes them where they belong in the file."""

        def keep(rows: slice, logprobs: Floats) -> None:
            self._all[window, rows] = logprobs

        return keep

    def end(self) -> dict[str, float | int | None]:
        """Write both files, each whole or not at all."""
        self._all.flush()
        columns = super().end()
        self._partial.replace(self._file)
        return columns


class WholeComparison(Comparison):
    """Compares the log-probabilities of every word."""

    def __init__(self, tokens: Ints, reference: Reference, facts: dict[str, str], shape: tuple[int, int, int]) -> None:
        super().__init__(tokens, 1, reference, facts)
        file = whole_file(reference.path)
        try:
            self._all = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise QbenchError(f"{file}: missing or damaged ({error}); start over with --fresh") from error
        if self._all.shape != shape:
            raise QbenchError(
                f"{file}: holds {self._all.shape} log-probabilities, not {shape}; start over with --fresh"
            )

    def whole(self, window: int) -> Pieces:
        """KL over the vocabulary, a few rows at a time, so that all of it stays in the processor's caches."""

        def compare(rows: slice, logprobs: Floats) -> None:
            step = max(1, CHUNK_VALUES // logprobs.shape[1])
            for start in range(rows.start, rows.stop, step):
                own = slice(start, min(start + step, rows.stop))
                found = logprobs[own.start - rows.start : own.stop - rows.start]
                self._kl[window, own] = whole_kl(self._all[window, own], found)

        return compare

    def see(self, window: int, scores: Scores) -> None:
        """As of outlines, but for KL."""
        kl = self._kl[window].copy()
        super().see(window, scores)
        self._kl[window] = kl
        self._tail[window] = 0.0

    def end(self) -> dict[str, float | int | None]:
        """As of outlines of as many words as there are."""
        return super().end() | {"top_k": self._all.shape[-1]}


CHUNK_VALUES = 1 << 18
"""float32 values of a piece of a comparison: 1 MiB."""


def whole_kl(p: Floats, q: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """KL(p || q) of log-probabilities [rows, vocabulary], in nats, float64 [rows]; terms in float32, which is enough.

    NumPy sums a row in pairs, whose rounding is far below that of the log-probabilities themselves, 1e-7.
    """
    with np.errstate(invalid="ignore"):  # of a word that neither has
        terms = np.exp(p) * (p - q)
    sums = terms.sum(1)
    if not np.isfinite(sums).all():
        sums = np.where(p > -np.inf, terms, np.float32(0)).sum(1)
    return np.asarray(sums, dtype=np.float64)


def kl_divergence(p: Floats, q: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """KL(p || q) of log-probabilities [rows, classes], in nats, float64 [rows]. A class without p adds nothing."""
    p64, q64 = p.astype(np.float64), q.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of a class that neither has
        terms = np.exp(p64) * (p64 - q64)
    return np.asarray(np.where(p64 > -np.inf, terms, 0).sum(1))


def _open(reference: Reference, facts: dict[str, str]) -> Any:
    """The 16-bit cell's file, if it is true of the same facts."""
    path, again = reference.path, "start over with --fresh"
    if not path.is_file():
        raise QbenchError(
            f"measure.perplexity.divergence: the cell {reference.label} has left no log-probabilities to compare with; "
            "mend it and run again, or set measure.perplexity.divergence to false"
        )
    try:
        kept: Any = safe_open(path, framework="np")
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
