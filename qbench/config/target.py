"""Where and in what a cell computes, as far as its bytes depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Target:
    """A device, and the compute dtype there."""

    device: DeviceType
    value_bytes: int
    """Of a number of the compute dtype: 2, or 4 for float32."""
    cpu_features: tuple[str, ...] = ()
    """As `qbench.machine.environment` names them."""
    device_map_auto: bool = False
    """Whether the layers are laid over several GPUs, where nothing is a CUDA graph."""
    dtype: str | None = None
    """The compute dtype, where it is known: float16, bfloat16 or float32."""
    capability: tuple[int, int] | None = None
    """A GPU's compute capability, where it is known."""
    kernel: str | None = None
    """The kernel that multiplied, where that is known; else the backend predicts it."""
