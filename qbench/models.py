"""Where a model comes from: the hub, a folder, the package's demo model, or random weights of a shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Everything a backend needs to know about the model it loads."""

    folder: Path
    """config.json, safetensors and (except for a bare shape) the tokenizer."""
    device: torch.device
    dtype: torch.dtype
    work: Path
    """A folder of this cell's own, for checkpoints that a backend writes."""
    trust_remote_code: bool = False


def load_pretrained(options: LoadOptions, **how: Any) -> PreTrainedModel:
    """The checkpoint in `options.dtype` on `options.device`, safetensors only; `how` goes to transformers as it is."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        options.folder,
        dtype=options.dtype,
        device_map={"": options.device},
        use_safetensors=True,
        trust_remote_code=options.trust_remote_code,
        local_files_only=True,
        **how,
    )
    return model.eval()


def load_tokenizer(options: LoadOptions) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, or None where the folder has none (random weights of a bare shape)."""
    if not any((options.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        options.folder, trust_remote_code=options.trust_remote_code, local_files_only=True
    )
    return tokenizer


def skeleton(options: LoadOptions) -> nn.Module:
    """The 16-bit model without weights, on the meta device: what a quantized one is compared with."""
    config = AutoConfig.from_pretrained(options.folder, trust_remote_code=options.trust_remote_code)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code)
    return model
