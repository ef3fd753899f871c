"""The options that AWQ and GPTQ share; `_gptqmodel` does the work, and is imported where a model is loaded."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from qbench import DISTRIBUTION
from qbench.config import Backend, GroupSize
from qbench.config.backends import groups
from qbench.config.target import Target


class Calibrated(Backend):
    """Options of the backends that gptqmodel quantizes with a calibration text."""

    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[gptq]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "gptqmodel")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "qbench.backends._gptqmodel")
    hub_library: ClassVar[str] = "transformers"
    group_size: GroupSize = Field(default=128, description="weights that share a scale")
    checkpoint: str | None = Field(
        default=None, description="folder or hub id of a checkpoint that is already quantized; nothing is calibrated"
    )

    @property
    def calibrates(self) -> bool:
        return self.checkpoint is None

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        # A scale and a zero in 16 bits, on a CPU once more for its kernel; on CUDA zeros have 4 bits.
        scales = out_features * groups(in_features, self.group_size) * (16 if target.device == "cpu" else 5) // 2
        return out_features * in_features // 2 + scales

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The model is there in 16 bit, twice in part, while it is quantized."""
        return max(weight_bytes, 2 * 2 * parameters) if self.calibrates else weight_bytes
