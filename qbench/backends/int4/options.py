"""What a configuration may say of an int4 cell, and what is known of its memory before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench.backends.int4.manifest import read_manifest
from qbench.config import Backend, GroupSize
from qbench.config.backends import groups
from qbench.config.target import Target
from qbench.errors import QbenchError
from qbench.int4 import limits


class Int4(Backend):
    """The project's own INT4: integers of 3, 4 or 8 bits in groups with a scale and an offset each."""

    title: ClassVar[str] = "qbench's own 3-, 4- or 8-bit integers in groups"
    proposed: ClassVar[bool] = True
    color: ClassVar[str | None] = "#0072b2"
    quantization: ClassVar[tuple[str, ...]] = ("bits", "group_size", "symmetric", "search", "calibrated")
    kind: Literal["int4"] = "int4"
    bits: Literal[3, 4, 8] = 4
    group_size: GroupSize | Literal[0] = Field(
        default=128, description="weights that share a scale and an offset; 0: the whole tensor"
    )
    symmetric: bool = Field(default=False, description="scales only, without offsets")
    search: Literal["mse", "none"] = Field(
        default="mse", description="mse: scales of the least squared error; none: plain round-to-nearest"
    )
    calibrated: bool = Field(
        default=False, description="true: codes and scales that keep the linears' outputs on the calibration text"
    )
    kernel: Literal["auto", "cuda", "triton", "cpu", "aten", "reference"] = Field(
        default="auto", description="what multiplies; the fastest that serves here unless given"
    )
    lm_head: Literal["16bit", "int8"] = Field(default="16bit", description="int8: the output embedding, too, in 8 bits")
    checkpoint: Path | None = Field(
        default=None, description="folder that `qbench quantize` wrote; nothing is quantized while loading"
    )

    @model_validator(mode="after")
    def _calibrated_groups_are_of_rows(self) -> Self:
        if self.calibrated and self.group_size == 0:
            raise ValueError("calibrated: needs groups of a row or less; set group_size, -1 for a whole row")
        return self

    @property
    def weight_bits(self) -> int:
        return self.bits

    @property
    def calibrates(self) -> bool:
        return self.calibrated and self.checkpoint is None

    @property
    def joins_projections(self) -> bool:
        """See `qbench.backends.int4.fuse`."""
        return self.group_size != 0

    def resolved(self) -> Self:
        if self.checkpoint is None:
            return self
        manifest = read_manifest(self.checkpoint.expanduser())
        for key in self.quantization:
            asked, made = getattr(self, key), getattr(manifest, key)
            if key in self.model_fields_set and asked != made:
                raise QbenchError(
                    f"backends.{self.label}: {key} {asked} is asked for, but {self.checkpoint} was quantized with "
                    f"{key} {made}; remove `{key}:`, or quantize again"
                )
        return self.model_copy(update={key: getattr(manifest, key) for key in self.quantization})

    def kernel_on(self, target: Target) -> str:
        """The kernel that ran; or else the one that `auto` takes, where one was compiled."""
        if target.kernel or self.kernel != "auto":
            return target.kernel or self.kernel
        own = "cuda" if target.device == "cuda" else "cpu"
        served = self.bits != 8 if own == "cuda" else self.bits != 8 or _cpu_level(target) != "generic"
        return own if served and (self.group_size <= 0 or limits.takes_groups(own, self.group_size)) else "reference"

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        # The fast kernels hold an offset beside each scale, also where it is zero.
        values = 1 if self.symmetric and self.kernel_on(target) == "reference" else 2
        scales = out_features * groups(in_features, self.group_size) * values
        return out_features * in_features * self.bits // 8 + 2 * scales

    def head_bytes(self, vocab_size: int, hidden_size: int, target: Target, *, tied: bool) -> int:
        if self.lm_head == "16bit":
            return super().head_bytes(vocab_size, hidden_size, target, tied=tied)
        # A code each; a 16-bit scale a row, and the C kernel's offset.
        values = 1 if target.device == "cuda" or _cpu_level(target) == "generic" else 2
        return vocab_size * hidden_size + 2 * values * vocab_size

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        weight = out_features * in_features * target.value_bytes
        match self.kernel_on(target):
            case "cpu":
                return _cpu_product_bytes(out_features, in_features, self.bits, tokens, target)
            case "reference":
                return 2 * weight  # as integers and as numbers
            case "cuda" if tokens > limits.CUDA_MAX_ROWS:
                return weight
            case "triton" if tokens > limits.TRITON_MAX_ROWS:
                return weight
            case _:
                return 0

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """Two 16-bit tensors are there beside what has been made; or, before that, the whole model is in 16 bits."""
        if self.checkpoint is not None:
            return weight_bytes
        return max(weight_bytes + 2 * 2 * largest_linear, 2 * parameters + weight_bytes if self.calibrated else 0)


def _cpu_product_bytes(out_features: int, in_features: int, bits: int, tokens: int, target: Target) -> int:
    """`qbench.int4.kernels.cpu`: a block of rows dequantized, its product, and the output it is copied to."""
    level = _cpu_level(target)
    bfloat16 = target.value_bytes == 2 and target.dtype != "float16" and level != "generic"
    values = target.value_bytes if bfloat16 else 4
    same = values == target.value_bytes
    rows = tokens if same else min(tokens, limits.FLOAT_ROWS)
    least = limits.dequantize_from(level, bits, bfloat16)
    if least is None or tokens < least:
        # Elsewhere activations and the output are float32 first.
        return 0 if same else (in_features + out_features) * rows * values
    block = limits.BLOCK_BYTES_AMX if bfloat16 and level == "amx" else limits.BLOCK_BYTES
    tile = limits.TILE_ROWS
    weights = max(1, block // (in_features * values * tile)) * tile
    inputs = 0 if same else in_features * rows * values
    return inputs + block + min(out_features, weights) * rows * values


def _cpu_level(target: Target) -> str:
    """The instruction set of `qbench.int4.native.LEVELS` that the kernel takes there."""
    for feature, level in (("amx_int8", "amx"), ("avx512_vnni", "avx512vnni"), ("avx512f", "avx512"), ("avx2", "avx2")):
        if feature in target.cpu_features:
            return level
    return "generic"
