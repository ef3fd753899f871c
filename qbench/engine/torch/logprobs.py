"""Log-probabilities of a window, in pieces that fit memory, and their outlines."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qbench.engine.torch.loaded import LoadedModel

CHUNK_VALUES = 1 << 25
"""float32 log-probabilities that exist at once: 128 MiB, where those of 2048 tokens of 128k words would take 1 GiB."""


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


def outline(logprobs: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities [rows, k + 1] of `words` [rows, k] and, last, of all others together.

    The last is a sum over the others, not 1 less that of the words: of that difference, next to certainty, nothing
    would be left.
    """
    others = logprobs.scatter(1, words, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logprobs.gather(1, words), others], 1)
