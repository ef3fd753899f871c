"""FP8 checkpoints of llm-compressor, in the format of compressed-tensors, through transformers' own loader.

Weights in float8 with a scale a row or a tensor multiply inputs that become float8 with a scale a token, on GPUs from
compute capability 8.9 on. All other schemes, and FP8 elsewhere, transformers turns back into 16 bits at the first
forward: such a cell would show the memory and the speed of FP16 and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qbench import DISTRIBUTION
from qbench.backends._checkpoint import ReadyMade
from qbench.config import Backend
from qbench.config.target import DeviceType, Target
from qbench.errors import UnavailableError

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

LEAST_CAPABILITY = (8, 9)
"""Compute capability from which on GPUs multiply float8: Ada and Hopper."""


class CompressedTensors(ReadyMade):
    """An FP8 checkpoint of llm-compressor."""

    title: ClassVar[str] = "FP8 checkpoints of llm-compressor, by transformers"
    devices: ClassVar[str] = "CUDA from 8.9 on"
    device_types: ClassVar[tuple[DeviceType, ...]] = ("cuda",)
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[compressed-tensors]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "compressed-tensors")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "compressed_tensors")
    color: ClassVar[str | None] = "#8b4513"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["compressed-tensors"] = "compressed-tensors"

    @property
    def weight_bits(self) -> int:
        return 8

    def unavailable_on(self, device: DeviceType) -> str | None:
        if device == "cpu":
            return "transformers turns FP8 checkpoints back into 16 bits on a CPU; measure it with device: cuda"
        return None

    def settings(self, scheme: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """None: there is but one scheme that can be measured.

        Raises:
            UnavailableError: the checkpoint is of another.
        """
        weights = [(group or {}).get("weights") or {} for group in (scheme.get("config_groups") or {}).values()]
        others = [one for one in weights if (one.get("type"), one.get("num_bits")) != ("float", 8)]
        if others or not weights:
            found = ", ".join(f"{one.get('num_bits')} bits {one.get('type')}" for one in others) or "no weights"
            raise UnavailableError(
                f"backends.{self.label}: {folder} quantizes to {found}, which transformers turns back into 16 bits; "
                "give an FP8 checkpoint, or quantize with gptq, awq or torchao"
            )
        return {}

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        return out_features * in_features + 4 * out_features

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """The input as float32, once more while it is clamped, and in 8 bits."""
        return (4 + 4 + 1) * tokens * in_features


CONFIG = CompressedTensors


def load(options: LoadOptions, config: CompressedTensors, calibration: Calibration | None) -> LoadedModel:
    """Load `config.checkpoint` for transformers' FP8 linears.

    Raises:
        QbenchError: the checkpoint is missing, or of another method or model.
        UnavailableError: it is not in FP8, or the GPU does not multiply float8.
    """
    import compressed_tensors  # noqa: F401  # transformers says of a missing one less than Python
    import torch
    from transformers import CompressedTensorsConfig

    from qbench.backends._checkpoint import fetch
    from qbench.backends._replaced import load_quantized

    folder = fetch(config.checkpoint, config.label)
    config.settings(config.scheme(folder), folder)
    if options.device.type == "cuda" and torch.cuda.get_device_capability(options.device) < LEAST_CAPABILITY:
        raise UnavailableError(
            f"backends.{config.label}: {torch.cuda.get_device_name(options.device)} does not multiply float8, which "
            "takes compute capability 8.9; use another backend"
        )
    return load_quantized(options, config, CompressedTensorsConfig(use_optimized_inference=True), checkpoint=folder)
