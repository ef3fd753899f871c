"""A text in windows, and what a model predicts in them: the protocol of the GPTQ and AWQ papers.

The text is tokenized once, as the tokenizer does by itself, which may put a token before the whole, and cut into
windows that do not overlap. The last, shorter one is dropped, and the first token of a window is read but not
predicted. (Frantar et al., arXiv:2210.17323, `opt.py` of IST-DASLab/gptq; Lin et al., arXiv:2306.00978, `entry.py` of
mit-han-lab/llm-awq.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qbench.backends.base import LoadedModel
from qbench.errors import QbenchError

DEFAULT_WINDOW = 2048
"""That of the papers."""

CHUNK_VALUES = 1 << 25
"""float32 log-probabilities that exist at once: 128 MiB, where those of 2048 tokens of 128k words would take 1 GiB."""


def window_length(model: Any, asked: int | None) -> int:
    """The tokens of a window: `asked`, or 2048 where the model's context reaches that far.

    Raises:
        QbenchError: more is asked than the model's context.
    """
    context: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if asked and context and asked > context:
        raise QbenchError(
            f"measure.perplexity.window: {asked} tokens, more than the model's context of {context}; "
            f"set it to {context} or less, or remove it"
        )
    return asked or min(DEFAULT_WINDOW, context or DEFAULT_WINDOW)


def cut(tokenizer: Any, text: str, window: int, limit: int | None) -> Tensor:
    """The first `limit` windows of a text, or all: int64 [windows, window].

    Raises:
        QbenchError: the text is shorter than one window.
    """
    # The tokenizer would warn that this is longer than the model's context, for which it is cut here.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    count = len(ids) // window
    if not count:
        raise QbenchError(
            f"measure.perplexity: the text has {len(ids)} tokens, fewer than a window ({window}); "
            "give a longer text or a smaller measure.perplexity.window"
        )
    return torch.tensor(ids[: count * window]).view(count, window)[:limit]


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """What one forward of `tokens` [window] says of the next token, in pieces: (rows, float32 [rows, vocabulary]).

    Row i is what follows tokens[: i + 1]; there are window - 1 rows, none for what follows the last token.
    """
    logits = loaded.model(tokens[None].to(loaded.device), use_cache=False).logits[0, :-1]
    rows = max(1, CHUNK_VALUES // logits.shape[1])
    for start in range(0, len(logits), rows):
        piece = slice(start, min(start + rows, len(logits)))
        yield piece, torch.log_softmax(logits[piece], -1, dtype=torch.float32)
