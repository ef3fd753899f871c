"""One forward of a transformers model that generates: what it is given besides the tokens, and what is taken of it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from qbench.compat.transformers import takes_dynamic_cache
from qbench.errors import QbenchError

CACHE_NAMES = ("past_key_values", "cache")
"""What transformers calls a cache of keys and values, until 5.23 and from 5.24 on."""
STATE_NAMES = (*CACHE_NAMES, "cache_params", "state")
"""What families call the state of a sequence: attention and hybrids, Mamba, RWKV."""


def forward_inputs(model: PreTrainedModel) -> frozenset[str]:
    """Names of what the forward of a model's class takes."""
    return frozenset(inspect.signature(type(model).forward).parameters)


def state_name(model: PreTrainedModel) -> str:
    """The input of a model's forward that holds what it remembers of a sequence.

    Raises:
        QbenchError: it has none of those known here.
    """
    taken = forward_inputs(model)
    found = next((name for name in STATE_NAMES if name in taken), None)
    if found is None:
        raise QbenchError(
            f"{type(model).__name__} takes none of {', '.join(STATE_NAMES)}, so that it cannot generate token by token "
            "here; choose another model, or remove throughput, sustained and generations"
        )
    return found


def keeping(model: PreTrainedModel, cache: Cache | None) -> dict[str, Cache | None]:
    """A cache of keys and values as an argument of the model's forward.

    Raises:
        QbenchError: as `state_name`.
    """
    return {state_name(model): cache}


def empty_state(model: PreTrainedModel) -> Cache | None:
    """What a sequence begins with, under `state_name`; None where the model makes it by itself (RWKV, MiniMax)."""
    own = state_name(model) == "state" or not takes_dynamic_cache(model)
    return None if own else DynamicCache(config=model.config)


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model's forward has `position_ids`; positions that are none of its inputs follow its cache."""
    return "position_ids" in forward_inputs(model)


def next_token(model: PreTrainedModel, input_ids: Tensor, **state: Any) -> tuple[Tensor, Tensor]:
    """The most probable token [batch_size, 1] and, before it, its logit."""
    return most_probable(model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **state).logits)


def most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last of logits [batch_size, tokens, vocabulary]."""
    best, token = logits[:, -1].max(-1, keepdim=True)
    return best, token
