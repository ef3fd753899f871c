"""optimum-quanto through transformers' own loader: weights of 8, 4 or 2 bits, products in the compute dtype.

4-bit weights in groups of 128 multiply by torch's own 4-bit kernel in bfloat16; other 4-bit and all 2-bit weights are
dequantized for every product. Those kernels are compiled at their first use, which takes a C++ compiler (or nvcc).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from qbench import DISTRIBUTION
from qbench.config import Backend
from qbench.config.target import Target

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

BITS = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}

LARGEST_GROUP, SMALLEST_GROUP = 128, 32
"""Weights that share a scale and a shift, if they divide a row: the largest in steps of 32."""

SCALES_BYTES = 8
"""Of an input's and an output's scale, both 1, which every linear holds."""


class Quanto(Backend):
    """Weights in 8, 4 or 2 bits, by optimum-quanto."""

    title: ClassVar[str] = "integer or float8 weights with 8, 4 or 2 bits, by optimum-quanto"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[quanto]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "optimum-quanto")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "optimum.quanto")
    color: ClassVar[str | None] = "#17becf"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["quanto"] = "quanto"
    weights: Literal["int8", "float8", "int4", "int2"] = "int8"

    @property
    def weight_bits(self) -> int:
        return BITS[self.weights]

    @property
    def capturable(self) -> bool:
        """quanto's own CUDA kernels, which unpack codes of less than 8 bits, run beside the stream of a capture."""
        return self.weight_bits == 8

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        codes = out_features * in_features * self.weight_bits // 8
        if self.weight_bits == 8:
            return codes + out_features * target.value_bytes + SCALES_BYTES
        groups = out_features * in_features // (_group(in_features) or in_features)
        return codes + 2 * groups * target.value_bytes + SCALES_BYTES

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """Codes that no kernel reads are unpacked to bytes, and become numbers that are scaled."""
        weight, output = (out_features * size * target.value_bytes for size in (in_features, tokens))
        kernel = self.weights == "int4" and _group(in_features) == LARGEST_GROUP and target.value_bytes == 2
        if self.weight_bits == 8 or kernel:
            return super().product_bytes(out_features, in_features, tokens, target)
        return max(out_features * in_features + 2 * weight - output, weight)

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The 16-bit model goes as its linears are quantized; one of them is there in float32, too."""
        return 2 * parameters + 2 * 4 * largest_linear


def _group(in_features: int) -> int | None:
    """The group size that quanto chooses; None where a row shares one scale."""
    if in_features <= LARGEST_GROUP:
        return None
    sizes = range(LARGEST_GROUP, SMALLEST_GROUP - 1, -SMALLEST_GROUP)
    return next((size for size in sizes if in_features % size == 0), None)


CONFIG = Quanto


def load(options: LoadOptions, config: Quanto, calibration: Calibration | None) -> LoadedModel:
    """Quantize while loading. Embeddings and the output head stay in `options.dtype`; no calibration is needed.

    Raises:
        UnavailableError: its kernels cannot be compiled here.
    """
    import optimum.quanto  # noqa: F401  # transformers says of a missing one less than Python
    import torch
    from transformers import QuantoConfig

    from qbench.backends._replaced import load_quantized
    from qbench.errors import UnavailableError

    if config.weight_bits < 8:
        try:
            torch.ops.quanto.unpack(torch.zeros(1, dtype=torch.uint8, device=options.device), config.weight_bits)
        except (RuntimeError, OSError) as error:
            raise UnavailableError(
                f"backends.{config.label}: quanto's kernels for {config.weights} cannot be compiled here "
                f"({str(error).strip().splitlines()[0]}); install a C++ compiler and ninja, and nvcc for CUDA, or take "
                "weights: int8"
            ) from error
    # Weights that are made outside of it fail in the inference mode that every measure runs in.
    with torch.inference_mode():
        return load_quantized(options, config, QuantoConfig(weights=config.weights))
