"""transformers: layers of its caches, which we subclass, and how it maps a checkpoint's tensors onto a model.

Relied on of `DynamicLayer`: `keys`, `values`, `dtype`, `device` and `is_initialized` are all of its state, its
`lazy_initialization(keys, values)` sets them, and attention takes what `update(keys, values)` returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

__all__ = ["Cache", "DynamicLayer", "attention", "ignored_on_load", "is_recurrent", "kept_dtypes", "renamer"]


def attention(model: PreTrainedModel) -> str:
    """The implementation that the model's layers call: sdpa, eager, flash_attention_2, …."""
    name: str = model.config.get_text_config(decoder=True)._attn_implementation
    return name


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether the model keeps a state that is not keys and values of every token, in some layer at least."""
    return bool(model._is_stateful)


def renamer(model: PreTrainedModel, shapes: Mapping[str, torch.Size]) -> Callable[[str], tuple[str, str | None]]:
    """How a checkpoint's tensors are named in the model, whose own have `shapes`.

    From the name in the file to the name in the model, with the pattern by which it becomes a part of a tensor that is
    made of several; None where it is one of its own.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    mergers = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    return lambda name: rename_source_key(name, renamings, mergers, model.base_model_prefix, shapes)


def kept_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> list[tuple[re.Pattern[str], torch.dtype]]:
    """The tensors, by a pattern that their names contain, that a model loaded in `dtype` keeps in another."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    return [(re.compile(pattern.replace("*", ".*")), kept) for pattern, kept in plan.items()]


def ignored_on_load(model: PreTrainedModel, how: Literal["missing", "unexpected"]) -> tuple[str, ...]:
    """Patterns of tensors that a checkpoint may lack, or hold beyond what the model needs."""
    return tuple(getattr(model, f"_keys_to_ignore_on_load_{how}") or ())
