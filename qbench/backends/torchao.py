"""torchao through transformers' own loader, by the names of torchao's configurations.

`TorchAO.config` names a class of `torchao.quantization`, or of its prototypes for CPUs, and the other options are the
arguments of that class under their own names. Weights stay `nn.Linear`s whose weight is a tensor of torchao's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench import DISTRIBUTION
from qbench.config import Backend
from qbench.config.target import DeviceType, Target

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

TILE = 1024
"""Inputs are filled up to a multiple of it in the layout of tinygemm."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is known of one of torchao's configurations without importing it."""

    bits: int
    takes: tuple[str, ...]
    """Options that it has."""
    prototype: bool = False
    group_size: int | None = None
    """Unless another is given; None for a scale a row."""
    cuda_only: str = ""
    """Why it does not run on a CPU."""


SCHEMES = {
    "Int8WeightOnlyConfig": Scheme(8, ("granularity", "group_size")),
    "Int8DynamicActivationInt8WeightConfig": Scheme(8, ("granularity",)),
    "Float8WeightOnlyConfig": Scheme(8, ("granularity", "group_size")),
    "Float8DynamicActivationFloat8WeightConfig": Scheme(
        8, ("granularity",), cuda_only="torchao multiplies by float8 inputs on GPUs from compute capability 8.9 on"
    ),
    "Int4WeightOnlyConfig": Scheme(
        4, ("group_size", "int4_packing_format"), group_size=128, cuda_only="torchao has no 4-bit kernel of it for CPUs"
    ),
    "PrototypeInt4WeightOnlyConfig": Scheme(4, ("group_size",), prototype=True, group_size=128),
}


class TorchAO(Backend):
    """One of torchao's configurations, with its arguments."""

    title: ClassVar[str] = "int4, int8 and float8, weights alone or inputs, too, by torchao"
    devices: ClassVar[str] = "CPU, CUDA; by config"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[torchao]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "torchao")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "torchao.quantization")
    color: ClassVar[str | None] = "#332288"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["torchao"] = "torchao"
    config: Literal[
        "Int8WeightOnlyConfig",
        "Int8DynamicActivationInt8WeightConfig",
        "Float8WeightOnlyConfig",
        "Float8DynamicActivationFloat8WeightConfig",
        "Int4WeightOnlyConfig",
        "PrototypeInt4WeightOnlyConfig",
    ] = Field(default="Int8WeightOnlyConfig", description="torchao's class; PrototypeInt4WeightOnlyConfig is for CPUs")
    granularity: Literal["PerRow", "PerTensor"] | None = Field(
        default=None, description="what shares a scale; PerRow unless given, or PerGroup where group_size is"
    )
    group_size: Literal[32, 64, 128, 256] | None = Field(
        default=None, description="weights that share a scale; 128 in 4 bits unless given"
    )
    int4_packing_format: Literal["plain", "tile_packed_to_4d"] | None = Field(
        default=None, description="of Int4WeightOnlyConfig: plain needs mslk; tile_packed_to_4d, the default, does not"
    )

    @model_validator(mode="after")
    def _arguments_belong_to_the_config(self) -> Self:
        given = [name for name in ("granularity", "group_size", "int4_packing_format") if getattr(self, name)]
        for name in given:
            if name not in self.scheme.takes:
                known = ", ".join(self.scheme.takes)
                raise ValueError(f"{name}: is no argument of {self.config}, which takes {known}; remove it")
        if self.granularity and self.group_size:
            raise ValueError("granularity: is PerGroup where group_size is given; remove one of them")
        return self

    @property
    def scheme(self) -> Scheme:
        """What is known of the configuration."""
        return SCHEMES[self.config]

    @property
    def weight_bits(self) -> int:
        return self.scheme.bits

    @property
    def grouped(self) -> int | None:
        """Weights that share a scale; None for a row or a tensor."""
        return self.group_size or self.scheme.group_size

    def unavailable_on(self, device: DeviceType) -> str | None:
        if device == "cpu" and self.scheme.cuda_only:
            other = "PrototypeInt4WeightOnlyConfig" if self.weight_bits == 4 else "Float8WeightOnlyConfig"
            return f"{self.config}: {self.scheme.cuda_only}; take config: {other}, or device: cuda"
        if device == "cuda" and self.scheme.prototype:
            return f"{self.config} is for CPUs; take config: Int4WeightOnlyConfig"
        return None

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        if self.scheme.cuda_only and self.weight_bits == 4 and self.int4_packing_format != "plain":
            in_features, out_features = -(-in_features // TILE) * TILE, -(-out_features // 8) * 8
        weights = out_features * in_features
        if self.weight_bits == 4:
            return weights // 2 + 2 * target.value_bytes * (weights // (self.grouped or in_features))
        scales = 1 if self.granularity == "PerTensor" else weights // (self.grouped or in_features)
        return weights + scales * (4 if self.config.startswith("Float8") else 4 + 1)  # integers have a zero, too

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """Beside the output: integers of a product as int32 and twice as float32; or the weight as numbers again."""
        weight, output = out_features * in_features, out_features * tokens * target.value_bytes
        if self.config == "Int8DynamicActivationInt8WeightConfig":
            return 3 * 4 * out_features * tokens - output
        if target.device == "cpu" and self.weight_bits == 8 and (self.group_size or self.config.startswith("Float8")):
            return max((2 * 4 + target.value_bytes) * weight - output, target.value_bytes * weight)
        return super().product_bytes(out_features, in_features, tokens, target)

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The 16-bit model goes as its linears are quantized; one of them is there in float32, too."""
        return 2 * parameters + 2 * 4 * largest_linear


CONFIG = TorchAO


def load(options: LoadOptions, config: TorchAO, calibration: Calibration | None) -> LoadedModel:
    """Quantize while loading. Embeddings and the output head stay in `options.dtype`; no calibration is needed.

    Raises:
        UnavailableError: the GPU is too old for the configuration, or a library that it needs is missing.
    """
    import torchao  # noqa: F401  # transformers says of a missing one less than Python
    from transformers import TorchAoConfig

    from qbench.backends._replaced import load_quantized

    return load_quantized(options, config, TorchAoConfig(torchao_config(config)))


def torchao_config(config: TorchAO) -> Any:
    """torchao's own object."""
    from torchao import quantization
    from torchao.prototype.quantization import int4

    arguments: dict[str, Any] = {"set_inductor_config": False}  # nothing is compiled here
    if "granularity" in config.scheme.takes:
        group = config.group_size
        arguments["granularity"] = (
            quantization.PerGroup(group) if group else getattr(quantization, config.granularity or "PerRow")()
        )
    else:
        arguments["group_size"] = config.grouped
    if "int4_packing_format" in config.scheme.takes:
        arguments["int4_packing_format"] = config.int4_packing_format or "tile_packed_to_4d"
    return getattr(int4 if config.scheme.prototype else quantization, config.config)(**arguments)
