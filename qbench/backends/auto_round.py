"""Checkpoints of AutoRound (Cheng et al. 2023, arXiv:2309.05516) through transformers' own loader.

Its roundings are learned by signed gradient descent. auto-round chooses the kernel that multiplies: its own in torch or
Triton, or one of gptqmodel's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from qbench import DISTRIBUTION
from qbench.backends._checkpoint import ReadyMade
from qbench.config import Backend, GroupSize
from qbench.config.backends import groups
from qbench.config.target import Target
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

WIDTHS = (2, 3, 4, 8)


class AutoRound(ReadyMade):
    """A checkpoint of AutoRound."""

    title: ClassVar[str] = "checkpoints of AutoRound in 8, 4, 3 or 2 bits, by auto-round"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[auto-round]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "auto-round", "gptqmodel")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "auto_round")
    color: ClassVar[str | None] = "#c1272d"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["auto-round"] = "auto-round"
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="as the checkpoint says")
    group_size: GroupSize = Field(default=128, description="as the checkpoint says")

    @property
    def weight_bits(self) -> int:
        return self.bits

    def settings(self, scheme: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        bits, group_size = scheme.get("bits"), scheme.get("group_size")
        if bits not in WIDTHS or not isinstance(group_size, int):
            raise QbenchError(
                f"backends.{self.label}: {folder / 'config.json'} says bits {bits} and group_size {group_size}; give a "
                "checkpoint of integers with 8, 4, 3 or 2 bits"
            )
        return {"bits": bits, "group_size": group_size}

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        scales = out_features * groups(in_features, self.group_size)
        return (out_features * in_features + scales) * self.bits // 8 + 2 * scales + 4 * 32 // self.bits

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """Of auto-round's kernel in torch: the codes as int32 and as bytes, then scaled in float16 and converted."""
        weight, output = (out_features * size * target.value_bytes for size in (in_features, tokens))
        return max((4 + 1 + 2) * out_features * in_features + weight - output, weight)


CONFIG = AutoRound


def load(options: LoadOptions, config: AutoRound, calibration: Calibration | None) -> LoadedModel:
    """Load `config.checkpoint` with the kernel that auto-round chooses here.

    Raises:
        QbenchError: the checkpoint is missing, or of another method or model; or its kernel computes in another dtype
            than the run.
    """
    import auto_round  # noqa: F401  # transformers says of a missing one less than Python

    import qbench.compat.gptqmodel  # noqa: F401  # whose kernels auto-round may take
    from qbench.backends._checkpoint import fetch
    from qbench.backends._replaced import load_quantized

    folder = fetch(config.checkpoint, config.label)
    config.settings(config.scheme(folder), folder)
    return load_quantized(options, config, checkpoint=folder)
