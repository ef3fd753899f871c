"""The options that every kind of backend has, and what is asked of a kind without loading a model.

A kind is a module with `CONFIG`, a subclass of `Backend`; see `qbench.config.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench import DISTRIBUTION
from qbench.config.base import Name, Resources, Strict
from qbench.config.target import DeviceType, Target

Engine = Literal["torch", "llama_cpp", "mlx", "server"]

GroupSize = Annotated[int, Field(ge=1)] | Literal[-1]
"""Consecutive weights of a row that are quantized together; -1: the whole row."""


KVCache = Literal["16bit", "int8", "int4"]
"""What keys and values are kept in: the compute dtype, or groups of integers by HQQ."""


class Backend(Strict):
    """Options that every backend has, and hooks with which a kind says what is known of it before it runs."""

    title: ClassVar[str] = ""
    """What it is, in a phrase."""
    devices: ClassVar[str] = "CPU, CUDA"
    """Where it runs, in words."""
    proposed: ClassVar[bool] = False
    """Whether `qbench init` writes a cell of it where it fits."""
    install: ClassVar[str] = f"pip install {DISTRIBUTION}"
    """The command that makes the backend importable."""
    libraries: ClassVar[tuple[str, ...]] = ("qbench", "torch", "transformers", "tokenizers")
    """Distributions that decide its figures."""
    modules: ClassVar[tuple[str, ...]] = ("torch", "transformers.modeling_utils")
    """Modules that `load` imports: `qbench backends` tries them."""
    quantization: ClassVar[tuple[str, ...]] = ()
    """Settings that decide the weights of a checkpoint that it makes; empty where it makes none."""
    engine: ClassVar[Engine] = "torch"
    """What runs its models; those of `qbench.plan.engines.PREDICTIONS` are predicted."""
    device_types: ClassVar[tuple[DeviceType, ...]] = ("cpu", "cuda")
    """Devices on which it can be measured."""
    color: ClassVar[str | None] = None
    """Of its marks in plots, #rrggbb; one that no other kind has unless given."""
    hub_library: ClassVar[str] = "qbench"
    """The model hub's name of the library that loads its checkpoints."""

    kind: str
    label: Name = ""
    """Name of the cell in rows, tables and plots; the kind unless given."""
    python: Path | None = Field(default=None, description="another interpreter, for libraries that cannot share one")
    kv_cache: KVCache = Field(
        default="16bit",
        description="int8, int4: the cell generates and scores over transformers' quantized cache (HQQ)",
    )
    resources: Resources | None = Field(default=None, description="what this cell asks of a cluster beyond its run")

    @model_validator(mode="before")
    @classmethod
    def _label_defaults_to_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label") and isinstance(data.get("kind"), str):
            return {**data, "label": data["kind"]}
        return data

    @model_validator(mode="after")
    def _the_cache_is_that_of_transformers(self) -> Self:
        if self.kv_cache != "16bit" and self.engine != "torch":
            raise ValueError(f"kv_cache: {self.kv_cache} is of models that transformers runs; {self.kind} takes 16bit")
        return self

    @property
    def weight_bits(self) -> int | None:
        """Bits of a stored weight code; None where nobody here can know: of a server's weights."""
        return 4

    @property
    def is_reference(self) -> bool:
        """Whether neither its weights nor its keys and values are quantized: others are compared with such a cell."""
        return self.weight_bits is not None and self.weight_bits >= 16 and self.kv_cache == "16bit"

    @property
    def used_libraries(self) -> tuple[str, ...]:
        """`libraries`, and those that an option brings in."""
        return self.libraries if self.kv_cache == "16bit" else (*self.libraries, "hqq")

    @property
    def quantizer_libraries(self) -> tuple[str, ...]:
        """Distributions of `python` that make its checkpoint, if nothing else of the cell runs in that interpreter."""
        return ()

    @property
    def worker_python(self) -> Path | None:
        """The interpreter that loads and measures it; None: the one that runs this."""
        return None if self.quantizer_libraries else self.python

    @property
    def calibrates(self) -> bool:
        """Whether loading reads the calibration text."""
        return False

    @property
    def joins_projections(self) -> bool:
        """Whether query, key and value are one product, and gate and up, whose output lives until all are used."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether a decode step can be a CUDA graph: no product waits for the GPU, or launches on another stream."""
        return True

    def unavailable_on(self, device: DeviceType) -> str | None:
        """Why it cannot work on a device, and what to take instead; None where nothing is known against it."""
        if device in self.device_types:
            return None
        return f"{self.kind} is not measured on {device}; set device: {self.device_types[0]}, or remove the cell"

    def resolved(self) -> Self:
        """The options with those that a ready checkpoint decides.

        Raises:
            QbenchError: the checkpoint is not there or damaged, or was made with other options than are asked for.
        """
        return self

    def refusal(self, target: Target) -> str | None:
        """The option that a target rules out, why, and what to choose; None as far as nothing is known against it.

        Asked before anything is loaded.
        """
        return None

    @property
    def makes_checkpoint(self) -> bool:
        """Whether a run keeps a checkpoint of these weights, which it makes of the model."""
        return bool(self.quantization) and getattr(self, "checkpoint", None) is None

    def with_checkpoint(self, folder: Path) -> Self:
        """The options with which `load` takes the checkpoint that `quantize` wrote into a folder."""
        return type(self).model_validate({**self.model_dump(), "checkpoint": str(folder)})

    def check_model(self, content: Mapping[str, Any]) -> None:
        """Refuse a model that the backend cannot load, as far as its config.json says so.

        Raises:
            QbenchError: it cannot.
        """

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        """Bytes of a block's linear without its bias: codes, scales, zeros, code books."""
        assert self.weight_bits is not None, "cells whose weights are not known are not predicted"
        return out_features * in_features * self.weight_bits // 8

    def head_bytes(self, vocab_size: int, hidden_size: int, target: Target, *, tied: bool) -> int:
        """Bytes of the output embedding; none where it is `tied` to the input embedding."""
        return 0 if tied else vocab_size * hidden_size * target.value_bytes

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """Bytes that the product of x [tokens, in_features] and a linear holds for a while, beside x and its output.

        On a CPU the kernels of most backends read codes; on CUDA bitsandbytes' and most of gptqmodel's dequantize.
        """
        dequantizes = (self.weight_bits or 16) < 16 and target.device == "cuda"
        return out_features * in_features * target.value_bytes if dequantizes else 0

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """About what loading and quantizing takes of a CPU's memory at its peak.

        Args:
            weight_bytes: of the loaded model.
            parameters: weights of the whole model.
            largest_linear: weights of the largest linear.
        """
        return weight_bytes


def groups(in_features: int, group_size: int) -> int:
    """Groups of a row; with a group size of -1 (the row) or 0 (the tensor) one."""
    return 1 if group_size < 1 else -(-in_features // group_size)
