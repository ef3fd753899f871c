"""Perplexity of a text, and the divergence from the 16-bit cell, from one forward of each window.

perplexity = exp(mean of -log p(token)) over all predicted tokens
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from qbench.analysis import formulas
from qbench.config import PerplexityConfig
from qbench.engine.base import Capability, Engine, Ints
from qbench.errors import NotFiniteError, QbenchError
from qbench.measure.base import Context
from qbench.measure.divergence import Observer, observer
from qbench.measure.windows import cut, window_length
from qbench.model import texts
from qbench.records.rows import PerplexityRow

NEEDS = frozenset({Capability.SCORE})
"""Capabilities without which a cell's measure is unsupported."""


LARGEST_NLL = math.log(sys.float_info.max)


def measure(engine: Engine, config: PerplexityConfig, context: Context) -> None:
    """Emit one `PerplexityRow`; the 16-bit cell also leaves what the others are compared with.

    A cell that finds nothing to be compared with keeps its perplexity, and fails then.

    Raises:
        NotFiniteError: a log-probability is NaN or infinite.
        QbenchError: the text cannot be read or is too short, the model has no tokenizer or too short a context, or
            there is nothing to compare with (see `qbench.measure.divergence.observer`).
    """
    if Capability.TEXT not in engine.can:
        raise QbenchError("measure.perplexity: the model has no tokenizer; choose one that has, or remove perplexity")
    start = time.perf_counter()
    text = config.text or "wikitext2"
    window = window_length(engine.about.context, config.window)
    tokens = cut(engine.encode(texts.read(text, "test", "measure.perplexity.text")), window, config.limit)
    watching, refusal = _observer(engine, tokens, config, context)
    nll = _negative_log_likelihoods(engine, tokens, watching, context)
    mean, stderr = formulas.mean_of_windows(nll)
    if mean > LARGEST_NLL:
        raise QbenchError(
            f"perplexity: {mean:.0f} nats a token, whose exponential no number holds: the model predicts nothing of "
            "this text. Check its weights and its dtype"
        )
    columns = {
        **context.identity,
        "dataset": texts.name(text),
        "window": window,
        "n_tokens": nll.size,
        "perplexity": math.exp(mean),
        "nll_mean": mean,
        "nll_stderr": stderr,
        **(watching.end() if watching else {}),
        "partial": config.partial,
        "wall_s": time.perf_counter() - start,
    }
    context.emit(PerplexityRow.model_validate(columns))
    if refusal:
        raise refusal


def _observer(
    engine: Engine, tokens: Ints, config: PerplexityConfig, context: Context
) -> tuple[Observer | None, QbenchError | None]:
    if not config.divergence or context.reference is None:
        return None, None
    try:
        return observer(tokens, config, engine.about.vocab_size, context.reference), None
    except QbenchError as error:
        return None, error


def _negative_log_likelihoods(
    engine: Engine, tokens: Ints, watching: Observer | None, context: Context
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """-log p(token) of all tokens of each window but the first, [windows, window - 1], in nats."""
    nll = np.empty((len(tokens), tokens.shape[1] - 1))
    for i in range(len(tokens)):
        window = tokens[i]
        context.progress("perplexity", i, len(tokens))
        if watching:
            scores = engine.score(window, top_k=watching.top_k, words=watching.words(i), whole=watching.whole(i))
            watching.see(i, scores)
        else:
            scores = engine.score(window)
        nll[i] = -scores.truth.astype(np.float64)
        if not np.isfinite(nll[i]).all():
            raise NotFiniteError(f"perplexity, first in window {i + 1}")
    context.progress("perplexity", len(tokens), len(tokens))
    return nll
