"""Where a model comes from: the hub, a folder, the package's demo model, or random weights of a shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qbench.config import resolve
from qbench.errors import QbenchError


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
    device_map_auto: bool = False
    """Whether the model is laid over all GPUs that are visible."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Receives what is being done, how much of it, and of how much, from backends that take long to load."""

    @property
    def device_map(self) -> dict[str, torch.device] | str:
        """As transformers takes it."""
        return "auto" if self.device_map_auto else {"": self.device}


def resolve_device(device: str) -> torch.device:
    """The device that `auto` stands for here.

    Raises:
        QbenchError: CUDA asked for where there is none.
    """
    chosen = torch.device(resolve.device(device, cuda=torch.cuda.is_available()))
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise QbenchError(
            f"device: {device} asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use device: cpu, or install a CUDA build of torch and a driver"
        )
    return chosen


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The compute dtype that `auto` stands for."""
    resolved: torch.dtype = getattr(torch, resolve.dtype(dtype, resolve.device_type(device.type)))
    return resolved


def load_pretrained(options: LoadOptions, **how: Any) -> PreTrainedModel:
    """The checkpoint in `options.dtype` where `options` puts it, safetensors only; `how` goes to transformers as it is.

    Raises:
        QbenchError: it is laid over GPUs that are too small for it, see `check_placed`.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        options.folder,
        dtype=options.dtype,
        device_map=options.device_map,
        use_safetensors=True,
        trust_remote_code=options.trust_remote_code,
        local_files_only=True,
        **how,
    )
    check_placed(model, options)
    return model.eval()


def check_placed(model: PreTrainedModel, options: LoadOptions) -> None:
    """Refuse a model of which a part was left off the GPUs: its speed would be that of the bus.

    Raises:
        QbenchError: a part of it is in the memory of the CPU, or on disk.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    left = sorted(part for part, place in places.items() if str(place) in ("cpu", "disk"))
    if options.device.type == "cuda" and left:
        raise QbenchError(
            f"out of memory: {len(left)} parts of the model do not fit the {torch.cuda.device_count()} GPUs "
            f"({left[0]} and on); give it more, or quantize it"
        )


def load_tokenizer(options: LoadOptions) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, or None where the folder has none (random weights of a bare shape)."""
    if not any((options.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        options.folder, trust_remote_code=options.trust_remote_code, local_files_only=True
    )
    return tokenizer


def skeleton(options: LoadOptions) -> PreTrainedModel:
    """The 16-bit model without weights: parameters are on the meta device, buffers as the model computes them."""
    config = AutoConfig.from_pretrained(
        options.folder, trust_remote_code=options.trust_remote_code, local_files_only=True
    )
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
    # Moving a parameter to meta makes a new one of it, also of a tied one.
    model.tie_weights()
    return model.eval()
