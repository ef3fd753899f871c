"""Half-quadratic quantization by hqq's own linears, which transformers 5 no longer puts into a model itself.

A scale and a zero for every group, both in the compute dtype, are moved until a robust error of the weights is least
(Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/); nothing is calibrated. Every product dequantizes the
whole weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from qbench import DISTRIBUTION
from qbench.config import Backend
from qbench.config.target import Target

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

CODES_A_WORD = 10
"""3-bit codes that hqq packs into an int32."""


class HQQ(Backend):
    """Half-quadratic quantization, by hqq."""

    title: ClassVar[str] = "half-quadratic quantization in 8, 4, 3 or 2 bits, by hqq"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[kv]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "hqq")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "hqq.core.quantize")
    color: ClassVar[str | None] = "#999933"
    hub_library: ClassVar[str] = "hqq"
    kind: Literal["hqq"] = "hqq"
    nbits: Literal[8, 4, 3, 2] = 4
    group_size: int = Field(default=64, ge=8, multiple_of=8, description="consecutive weights that share a scale")

    @property
    def weight_bits(self) -> int:
        return self.nbits

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        groups = out_features * in_features // self.group_size
        codes = groups * self.group_size * self.nbits // 8
        if self.nbits == 3:
            codes = -(-groups // CODES_A_WORD) * self.group_size * 4
        return codes + 2 * groups * target.value_bytes

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """The codes as numbers, without their zeros, and scaled; only the last while it multiplies."""
        weight, output = (out_features * size * target.value_bytes for size in (in_features, tokens))
        return max(3 * weight - output, weight)

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The 16-bit model, whose linears go one after another, and the float32 copies that one is fitted with."""
        return 2 * parameters + 4 * 4 * largest_linear


CONFIG = HQQ


def load(options: LoadOptions, config: HQQ, calibration: Calibration | None) -> LoadedModel:
    """Load in 16 bit and quantize linear by linear. Embeddings and the output head stay as they are.

    Raises:
        QbenchError: the weights of a linear are no multiple of the group size.
    """
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    from qbench.backends._replaced import describe
    from qbench.engine.torch.loaded import block_linears
    from qbench.errors import QbenchError
    from qbench.model.load import load_pretrained, skeleton

    expected = block_linears(skeleton(options))
    for name, linear in expected.items():
        if linear.weight.numel() % config.group_size:
            raise QbenchError(
                f"backends.{config.label}: group_size {config.group_size} does not divide the "
                f"{linear.weight.numel()} weights of {name}; choose another"
            )
    how = BaseQuantizeConfig(nbits=config.nbits, group_size=config.group_size)
    model = load_pretrained(options)
    linears = block_linears(model)
    for done, (name, linear) in enumerate(linears.items()):
        options.progress("quantizing", done, len(linears))
        quantized = HQQLinear(linear, how, compute_dtype=options.dtype, device=str(options.device))
        model.set_submodule(name, quantized)
    return describe(
        model, options, config, expected, lambda linear: (v for v in linear.meta.values() if hasattr(v, "nbytes"))
    )
