"""bitsandbytes: what a quantized weight holds beside its codes stands in attributes of its `QuantState`."""

from __future__ import annotations

import torch
from bitsandbytes.functional import QuantState


def state_tensors(state: QuantState | None) -> list[torch.Tensor]:
    """Block scales, code book and, with double quantization, the scales of the scales with their code book.

    None are of a linear that stays as it is, such as a router of a class derived from `nn.Linear`.
    """
    if state is None:
        return []
    tensors = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    nested = getattr(state, "state2", None)
    return tensors + (state_tensors(nested) if nested is not None else [])
