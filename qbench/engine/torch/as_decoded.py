"""Reading known tokens over a quantized cache as if they were decoded one by one.

A prefill attends to keys and values in 16 bit and quantizes them afterwards: a score taken from it would say nothing of
the cache. While decoding, transformers' `QuantizedLayer` quantizes the first token, and then all tokens again whenever
`RESIDUAL` new ones have come; a token attends to the integers of all earlier blocks and, in the compute dtype, to what
came after them. So tokens are read in the same blocks, the first one alone and then `RESIDUAL` at a time, each in one
forward: every token sees what it would see while decoding, to the order of sums, in a 128th of the forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench.engine.torch.cache import quantized_cache
from qbench.engine.torch.step import keeping, takes_positions
from qbench.model.kv_cache import RESIDUAL


def blocks(tokens: int) -> list[slice]:
    """What is read at once of a sequence, so that the cache is quantized where it would be while decoding."""
    starts = [0, *range(1, tokens, RESIDUAL), tokens]
    return [slice(start, end) for start, end in pairwise(starts) if end > start]


def read(
    model: PreTrainedModel, kv_cache: Literal["int8", "int4"], tokens: Tensor, kept: Sequence[int] | None = None
) -> Iterator[Tensor]:
    """Logits of tokens [rows, length] over an empty cache, a block at a time: [rows, places, vocabulary].

    Of the places in `kept`, ascending, or of all; a block without one gives nothing. Rows may be padded on the right.

    Raises:
        QbenchError: the model's cache cannot be quantized, see `qbench.engine.torch.cache.quantized_cache`.
    """
    cache = quantized_cache(model, kv_cache)
    places = range(tokens.shape[1]) if kept is None else kept
    for block in blocks(tokens.shape[1]):
        wanted = [place - block.start for place in places if block.start <= place < block.stop]
        positions = torch.arange(block.start, block.stop, device=tokens.device)[None]
        output = model(
            tokens[:, block],
            **keeping(model, cache),
            use_cache=True,
            logits_to_keep=torch.tensor(wanted or [0], device=tokens.device),
            **({"position_ids": positions} if takes_positions(model) else {}),
        )
        if wanted:
            yield output.logits
