"""GPTQ: columns are rounded one after another, each making up for the error of those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from qbench.backends import _kernels
from qbench.backends._calibrated import Calibrated
from qbench.config.target import Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qbench.backends._gptqmodel import Method
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions


class GPTQ(Calibrated):
    """GPTQ, by gptqmodel."""

    title: ClassVar[str] = "4-bit integers rounded column by column, by gptqmodel"
    proposed: ClassVar[bool] = True
    quantization: ClassVar[tuple[str, ...]] = ("group_size", "desc_act", "sym")
    color: ClassVar[str | None] = "#cc79a7"
    kernels: ClassVar[Mapping[str, _kernels.Kernel]] = _kernels.GPTQ
    kind: Literal["gptq"] = "gptq"
    kernel: Literal["auto", "marlin", "machete", "exllama_v2", "triton", "torch_fused", "torch_aten", "torch"] = Field(
        default="auto", description="what multiplies, by gptqmodel's names; the fastest that serves unless given"
    )
    desc_act: bool = Field(default=False, description="quantize columns in the order of their activations")
    sym: bool = Field(default=True, description="symmetric codes, without zero points")

    @property
    def symmetric(self) -> bool:
        return self.sym

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        # The order of columns, and on a CPU its inverse; and the shifts that unpack eight codes.
        order = (8 if target.device == "cpu" else 4) * in_features + 32
        return super().linear_bytes(out_features, in_features, target) + order


CONFIG = GPTQ


def prepare(options: LoadOptions, config: GPTQ) -> None:
    """Compile the kernel, once, if it is one that is compiled.

    Raises:
        UnavailableError: the kernel cannot run or be compiled here.
    """
    from qbench.backends._gptqmodel import prepare

    prepare(options, config)


def quantize(options: LoadOptions, config: GPTQ, calibration: Calibration | None, out: Path) -> float:
    """Write a checkpoint in AutoGPTQ's format into the folder `out`; return the seconds spent quantizing.

    Raises:
        QbenchError: a group size that does not fit.
    """
    from qbench.backends._gptqmodel import write_checkpoint

    return write_checkpoint(options, config, calibration, out, _method(config))


def load(options: LoadOptions, config: GPTQ, calibration: Calibration | None) -> LoadedModel:
    """Quantize the model in AutoGPTQ's format, or load `config.checkpoint`.

    Raises:
        QbenchError: a group size that does not fit, or a checkpoint that is missing or of another kind.
    """
    from qbench.backends._gptqmodel import load_quantized

    return load_quantized(options, config, calibration, _method(config))


def _method(config: GPTQ) -> Method:
    from qbench.backends._gptqmodel import BACKEND, Method

    return Method("gptq", "gptq", BACKEND.GPTQ_TORCH, {"sym": config.sym, "desc_act": config.desc_act})
