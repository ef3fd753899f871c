"""transformers: layers of its caches, which we subclass, and how it maps a checkpoint's tensors onto a model.

Relied on of `DynamicLayer`: `keys`, `values`, `device`, `is_initialized` and, until 5.23, `dtype` are all of its state,
its `lazy_initialization(keys, values)` sets them, and attention takes what `update(keys, values)` returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer, StaticSlidingWindowLayer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.moe import _default_apply_gate
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = [
    "Cache",
    "DynamicLayer",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "attention",
    "ignored_on_load",
    "kept_dtypes",
    "renamer",
    "sdpa_attention_forward",
    "stacked_experts",
    "takes_dynamic_cache",
    "takes_static_cache",
]


def attention(model: PreTrainedModel) -> str:
    """The implementation that the model's layers call: sdpa, eager, flash_attention_2, …."""
    name: str = model.config.get_text_config(decoder=True)._attn_implementation
    return name


def takes_static_cache(model: PreTrainedModel) -> bool:
    """Whether its class says that a step over a cache of one length can be captured, and it keeps no other state.

    With others the step may run and give other tokens, as where a mask of local attention counts from a cache's end.
    OPT says so, and makes a mask as long as the sequence; Falcon makes biases (ALiBi) of that length.
    """
    stays = model.config.model_type != "opt" and not getattr(model.config, "alibi", False)
    return bool(model._can_compile_fullgraph) and not model._is_stateful and stays


def takes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Whether the model reads and writes transformers' own cache; RWKV and MiniMax have classes of their own."""
    said = getattr(model, "_supports_default_dynamic_cache", None)  # not of models that cannot `generate`
    return said is None or bool(said())


def stacked_experts(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that hold experts in `gate_up_proj` and `down_proj`: gate before up, a row an output, no bias.

    Those are what `use_experts_implementation` says of a class (transformers.integrations.moe).
    """
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "is_concatenated", False)
        and getattr(module, "has_gate", False)
        and not (module.is_transposed or module.has_bias or getattr(module, "has_post_expert_norm", False))
        and type(module)._apply_gate is _default_apply_gate
        and {key for key, _ in module.named_parameters(recurse=False)} == {"gate_up_proj", "down_proj"}
    ]


def renamer(model: PreTrainedModel, shapes: Mapping[str, torch.Size]) -> Callable[[str], tuple[str, int | None]]:
    """How a checkpoint's tensors are named in the model, whose own have `shapes`.

    From the name in the file to the name in the model, with its place among the patterns that become one tensor of the
    model; None where it is one of its own.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    mergers = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    places = {pattern: place for merger in mergers for place, pattern in enumerate(merger.source_patterns)}

    def rename(name: str) -> tuple[str, int | None]:
        found, pattern = rename_source_key(name, renamings, mergers, model.base_model_prefix, shapes)
        return found, None if pattern is None else places[pattern]

    return rename


def kept_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> list[tuple[re.Pattern[str], torch.dtype]]:
    """The tensors, by a pattern that their names contain, that a model loaded in `dtype` keeps in another."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    return [(re.compile(pattern.replace("*", ".*")), kept) for pattern, kept in plan.items()]


def ignored_on_load(model: PreTrainedModel, how: Literal["missing", "unexpected"]) -> tuple[str, ...]:
    """Patterns of tensors that a checkpoint may lack, or hold beyond what the model needs."""
    return tuple(getattr(model, f"_keys_to_ignore_on_load_{how}") or ())
