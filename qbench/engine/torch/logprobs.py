"""Log-probabilities of a window, in pieces that fit memory, and their outlines."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qbench.engine.base import KVCache
from qbench.engine.torch import as_decoded
from qbench.engine.torch.loaded import LoadedModel

CHUNK_VALUES = 1 << 25
"""float32 log-probabilities that exist at once: 128 MiB, where those of 2048 tokens of 128k words would take 1 GiB."""


@torch.inference_mode()
def log_probabilities(
    loaded: LoadedModel, tokens: Tensor, kv_cache: KVCache = "16bit"
) -> Iterator[tuple[slice, Tensor]]:
    """What one forward of `tokens` [window] says of the next token, in pieces: (rows, float32 [rows, vocabulary]).

    Over a quantized cache they are read as if decoded, see `qbench.engine.torch.as_decoded`.

    Row i is what follows tokens[: i + 1]; there are window - 1 rows, none for what follows the last token.
    """
    window = tokens[None].to(loaded.device)
    if kv_cache == "16bit":
        whole = iter((loaded.model(window, use_cache=False).logits[:, :-1],))
    else:
        whole = as_decoded.read(loaded.model, kv_cache, window[:, :-1])
    known = 0
    for logits in whole:
        rows = max(1, CHUNK_VALUES // logits.shape[-1])
        for piece in logits[0].split(rows):
            yield slice(known, known + len(piece)), torch.log_softmax(piece, -1, dtype=torch.float32)
            known += len(piece)


def outline(logprobs: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities [rows, k + 1] of `words` [rows, k] and, last, of all others together.

    The last is a sum over the others, not 1 less that of the words: of that difference, next to certainty, nothing
    would be left.
    """
    others = logprobs.scatter(1, words, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logprobs.gather(1, words), others], 1)
