"""The backends' options: one class a kind, listed in `qbench.config.kinds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qbench.config.base import Name, Resources, Strict

GroupSize = Annotated[int, Field(ge=1)] | Literal[-1]
"""Consecutive weights of a row that are quantized together; -1: the whole row."""


class Backend(Strict):
    """Options that every backend has."""

    install: ClassVar[str] = "pip install qbench"
    """The command that makes the backend importable."""
    libraries: ClassVar[tuple[str, ...]] = ("qbench", "torch", "transformers")
    """Distributions that decide its figures."""
    quantization: ClassVar[tuple[str, ...]] = ()
    """Settings that decide the weights of a checkpoint that it makes; empty where it makes none."""

    kind: str
    label: Name = ""
    """Name of the cell in rows, tables and plots; the kind unless given."""
    python: Path | None = Field(default=None, description="another interpreter, for libraries that cannot share one")
    resources: Resources | None = Field(default=None, description="what this cell asks of a cluster beyond its run")

    @model_validator(mode="before")
    @classmethod
    def _label_defaults_to_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label") and isinstance(data.get("kind"), str):
            return {**data, "label": data["kind"]}
        return data

    @property
    def weight_bits(self) -> int:
        """Bits of a stored weight code."""
        return 4

    @property
    def calibrates(self) -> bool:
        """Whether loading reads the calibration text."""
        return False


class FP16(Backend):
    """The 16-bit reference: the checkpoint as published, in the run's compute dtype."""

    kind: Literal["fp16"] = "fp16"

    @property
    def weight_bits(self) -> int:
        return 16


class Int4(Backend):
    """The project's own INT4: group-wise integers with a scale and an offset each, two codes a byte."""

    quantization: ClassVar[tuple[str, ...]] = ("bits", "group_size", "symmetric", "search")
    kind: Literal["int4"] = "int4"
    bits: Literal[4, 8] = 4
    group_size: GroupSize | Literal[0] = Field(
        default=128, description="weights that share a scale and an offset; 0: the whole tensor"
    )
    symmetric: bool = Field(default=False, description="scales only, without offsets")
    search: Literal["mse", "none"] = Field(
        default="mse", description="mse: scales of the least squared error; none: plain round-to-nearest"
    )
    kernel: Literal["auto", "triton", "cpu", "aten", "reference"] = Field(
        default="auto", description="what multiplies; the fastest that serves here unless given"
    )
    lm_head: Literal["16bit", "int8"] = Field(default="16bit", description="int8: the output embedding, too, in 8 bits")
    checkpoint: Path | None = Field(
        default=None, description="folder that `qbench quantize` wrote; nothing is quantized while loading"
    )

    @property
    def weight_bits(self) -> int:
        return self.bits


class NF4(Backend):
    """bitsandbytes' 4-bit NormalFloat, blocks of 64."""

    install: ClassVar[str] = "pip install 'qbench[nf4]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "bitsandbytes")
    kind: Literal["nf4"] = "nf4"
    double_quant: bool = Field(default=False, description="quantize the block scales, too")


class Calibrated(Backend):
    """Options of the backends that gptqmodel quantizes with a calibration text."""

    install: ClassVar[str] = "pip install 'qbench[gptq]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "gptqmodel")
    group_size: GroupSize = Field(default=128, description="weights that share a scale")
    checkpoint: str | None = Field(
        default=None, description="folder or hub id of a checkpoint that is already quantized; nothing is calibrated"
    )

    @property
    def calibrates(self) -> bool:
        return self.checkpoint is None


class AWQ(Calibrated):
    """Activation-aware weight quantization, asymmetric, by gptqmodel."""

    quantization: ClassVar[tuple[str, ...]] = ("group_size",)
    kind: Literal["awq"] = "awq"


class GPTQ(Calibrated):
    """GPTQ, by gptqmodel."""

    quantization: ClassVar[tuple[str, ...]] = ("group_size", "desc_act", "sym")
    kind: Literal["gptq"] = "gptq"
    desc_act: bool = Field(default=False, description="quantize columns in the order of their activations")
    sym: bool = Field(default=True, description="symmetric codes, without zero points")
