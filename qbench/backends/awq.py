"""Activation-aware weight quantization: asymmetric integers, the channels that matter scaled up beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench.backends import _kernels
from qbench.backends._calibrated import Calibrated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qbench.backends._gptqmodel import Method
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions


class AWQ(Calibrated):
    """Activation-aware weight quantization, asymmetric, by gptqmodel."""

    title: ClassVar[str] = "activation-aware 4-bit integers, by gptqmodel"
    proposed: ClassVar[bool] = True
    quantization: ClassVar[tuple[str, ...]] = ("group_size", "quantizer")
    color: ClassVar[str | None] = "#009e73"
    kernels: ClassVar[Mapping[str, _kernels.Kernel]] = _kernels.AWQ
    kind: Literal["awq"] = "awq"
    quantizer: Literal["gptqmodel", "autoawq"] = Field(
        default="gptqmodel",
        description="autoawq: AutoAWQ itself quantizes, in the interpreter `python`, which `make env-autoawq` builds",
    )
    kernel: Literal[
        "auto", "marlin", "machete", "exllama_v2", "gemm", "gemm_triton", "torch_fused", "torch_aten", "torch"
    ] = Field(default="auto", description="what multiplies, by gptqmodel's names; the fastest that serves unless given")

    @model_validator(mode="after")
    def _autoawq_has_an_interpreter(self) -> Self:
        if self.quantizer == "autoawq" and self.python is None:
            raise ValueError(
                "quantizer: autoawq needs an interpreter of its own; run `make env-autoawq` and add "
                "`python: build/autoawq/bin/python`"
            )
        return self

    @property
    def quantizer_libraries(self) -> tuple[str, ...]:
        return ("autoawq", "torch", "transformers") if self.quantizer == "autoawq" else ()


CONFIG = AWQ


def prepare(options: LoadOptions, config: AWQ) -> None:
    """Compile the kernel, once, if it is one that is compiled.

    Raises:
        UnavailableError: the kernel cannot run or be compiled here.
    """
    from qbench.backends._gptqmodel import prepare

    prepare(options, config)


def quantize(options: LoadOptions, config: AWQ, calibration: Calibration | None, out: Path) -> float:
    """Write a checkpoint in AutoAWQ's GEMM format into the folder `out`; return the seconds spent quantizing.

    Raises:
        QbenchError: a group size that does not fit.
    """
    if config.quantizer == "autoawq":
        from qbench.backends import _autoawq

        options.progress("quantizing with autoawq", 0, 1)
        return _autoawq.write_checkpoint(options, config, calibration, out)
    from qbench.backends._gptqmodel import write_checkpoint

    return write_checkpoint(options, config, calibration, out, _method(config))


def load(options: LoadOptions, config: AWQ, calibration: Calibration | None) -> LoadedModel:
    """Quantize the model in AutoAWQ's GEMM format, or load `config.checkpoint`.

    Raises:
        QbenchError: a group size that does not fit, or a checkpoint that is missing or of another kind.
    """
    from qbench.backends._gptqmodel import load_quantized

    if config.quantizer == "autoawq" and config.checkpoint is None:
        folder = options.work / "checkpoint"
        seconds = quantize(options, config, calibration, folder)
        loaded = load_quantized(options, config.with_checkpoint(folder.resolve()), None, _method(config))
        return replace(loaded, quantize_s=seconds)
    return load_quantized(options, config, calibration, _method(config))


def _method(config: AWQ) -> Method:
    from qbench.backends._gptqmodel import BACKEND, Method

    # Its automatic choice of a packer needs a CUDA device.
    return Method("awq", "gemm", BACKEND.AWQ_TORCH, {"sym": False})
