"""The options that AWQ and GPTQ share; `_gptqmodel` does the work, and is imported where a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from qbench import DISTRIBUTION
from qbench.backends import _kernels
from qbench.config import Backend
from qbench.config.backends import groups
from qbench.config.target import Target


class Calibrated(Backend):
    """Options of the backends that gptqmodel quantizes with a calibration text."""

    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[gptq]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "gptqmodel")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "qbench.backends._gptqmodel")
    hub_library: ClassVar[str] = "transformers"
    kernels: ClassVar[Mapping[str, _kernels.Kernel]]
    """Those that `kernel` may name."""
    group_size: _kernels.GroupSize = Field(default=128, description="weights that share a scale")
    kernel: str = "auto"
    checkpoint: str | None = Field(
        default=None, description="folder or hub id of a checkpoint that is already quantized; nothing is calibrated"
    )

    @model_validator(mode="after")
    def _the_kernel_takes_the_codes(self) -> Self:
        if reason := _kernels.refusal(self.kernels, self.kernel, self.group_size, symmetric=self.symmetric):
            raise ValueError(reason)
        return self

    @property
    def symmetric(self) -> bool:
        """Whether codes have no zero points."""
        return False

    @property
    def calibrates(self) -> bool:
        return self.checkpoint is None

    def refusal(self, target: Target) -> str | None:
        return _kernels.refusal(self.kernels, self.kernel, self.group_size, symmetric=self.symmetric, target=target)

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        # A scale and a zero in 16 bits, and torch's kernel for CPUs holds them twice; other kernels' zeros have 4 bits.
        twice = target.device == "cpu" and self.kernel in ("auto", "torch_aten")
        scales = out_features * groups(in_features, self.group_size) * (16 if twice else 5) // 2
        return out_features * in_features // 2 + scales

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        # What `auto` takes on CUDA is known only there: without Marlin, the weight is dequantized.
        known = self.kernels.get(self.kernel)
        reads_codes = not known.dequantizes if known else any(name in (target.kernel or "") for name in READ_CODES)
        return 0 if reads_codes else super().product_bytes(out_features, in_features, tokens, target)

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The model is there in 16 bit, twice in part, while it is quantized."""
        return max(weight_bytes, 2 * 2 * parameters) if self.calibrates else weight_bytes


READ_CODES = ("Marlin", "Machete")
"""In the names of classes that multiply without dequantizing, as a row's `kernel` has them."""
