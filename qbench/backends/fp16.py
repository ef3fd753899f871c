"""The 16-bit reference that every other backend is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from qbench.config import Backend
from qbench.config.target import Target

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions


class FP16(Backend):
    """The 16-bit reference: the checkpoint as published, in the run's compute dtype."""

    title: ClassVar[str] = "the checkpoint as published, in 16 bit"
    proposed: ClassVar[bool] = True
    color: ClassVar[str | None] = "#7a7a7a"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["fp16"] = "fp16"

    @property
    def weight_bits(self) -> int:
        return 16

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        return out_features * in_features * target.value_bytes


CONFIG = FP16


def load(options: LoadOptions, config: FP16, calibration: Calibration | None) -> LoadedModel:
    """The checkpoint as published, in `options.dtype`. Nothing is quantized, so nothing is expected to be."""
    from qbench.engine.torch.loaded import LoadedModel, block_weights, storage_bytes
    from qbench.model.load import load_pretrained, load_tokenizer

    model = load_pretrained(options)
    weights = block_weights(model).values()
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=model.dtype,
        kernel="torch.nn.Linear",
        linear_bytes=storage_bytes(weights),
        linear_weights=sum(weight.numel() for weight in weights),
    )
