"""A text in windows: the protocol of the GPTQ and AWQ papers.

The text is tokenized once, as the tokenizer does by itself, which may put a token before the whole, and cut into
windows that do not overlap. The last, shorter one is dropped, and the first token of a window is read but not
predicted. (Frantar et al., arXiv:2210.17323, `opt.py` of IST-DASLab/gptq; Lin et al., arXiv:2306.00978, `entry.py` of
mit-han-lab/llm-awq.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qbench.engine.base import Ints
from qbench.errors import QbenchError

DEFAULT_WINDOW = 2048
"""That of the papers."""


def window_length(context: int | None, asked: int | None) -> int:
    """The tokens of a window: `asked`, or 2048 where the model's context reaches that far.

    Raises:
        QbenchError: more is asked than the model's context.
    """
    if asked and context and asked > context:
        raise QbenchError(
            f"measure.perplexity.window: {asked} tokens, more than the model's context of {context}; "
            f"set it to {context} or less, or remove it"
        )
    return asked or min(DEFAULT_WINDOW, context or DEFAULT_WINDOW)


def cut(ids: Sequence[int], window: int, limit: int | None) -> Ints:
    """The first `limit` windows of a text's tokens, or all: int64 [windows, window].

    Raises:
        QbenchError: the text is shorter than one window.
    """
    count = len(ids) // window
    if not count:
        raise QbenchError(
            f"measure.perplexity: the text has {len(ids)} tokens, fewer than a window ({window}); "
            "give a longer text or a smaller measure.perplexity.window"
        )
    return np.array(ids[: count * window], dtype=np.int64).reshape(count, window)[:limit]
