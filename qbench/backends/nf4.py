"""4-bit NormalFloat by bitsandbytes, through transformers' own loader.

On a CPU with AVX512-BF16 bitsandbytes repacks every weight at its first forward: the scales become bfloat16, and the
quantized scales of `double_quant` are undone. There both settings hold 4.25 bits a weight and multiply in bfloat16.
Elsewhere a float32 scale for 64 weights makes 4.5 bits, and `double_quant` about 4.13.
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

BLOCK = 64
"""Weights that share a scale."""

CODE_BOOK_BYTES = 64
"""Sixteen float32 values, which every linear holds."""


class NF4(Backend):
    """bitsandbytes' 4-bit NormalFloat, blocks of 64."""

    title: ClassVar[str] = "4-bit NormalFloat in blocks of 64, by bitsandbytes"
    proposed: ClassVar[bool] = True
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[nf4]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "bitsandbytes")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "bitsandbytes.nn")
    color: ClassVar[str | None] = "#e69f00"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["nf4"] = "nf4"
    double_quant: bool = Field(default=False, description="quantize the block scales, too")

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        weights = out_features * in_features
        return weights // 2 + CODE_BOOK_BYTES + self._scale_bytes(-(-weights // BLOCK), target)

    def _scale_bytes(self, blocks: int, target: Target) -> int:
        if target.device == "cpu" and target.value_bytes == 2 and "avx512_bf16" in target.cpu_features:
            return 2 * blocks  # repacked with bfloat16 scales
        if self.double_quant:
            return blocks + 4 * -(-blocks // 256) + 1024 + 4  # an 8-bit scale each, and theirs with a code book
        return 4 * blocks

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The model is there in 16 bit, twice in part, while it is quantized."""
        return max(weight_bytes, 2 * 2 * parameters)


CONFIG = NF4


def load(options: LoadOptions, config: NF4, calibration: Calibration | None) -> LoadedModel:
    """Quantize while loading. Embeddings and the output head stay in `options.dtype`; no calibration is needed."""
    import bitsandbytes  # noqa: F401  # transformers says of a missing one less than Python
    from transformers import BitsAndBytesConfig

    from qbench.backends._replaced import load_quantized
    from qbench.compat.bitsandbytes import state_tensors

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=options.dtype,
        bnb_4bit_use_double_quant=config.double_quant,
    )
    return load_quantized(
        options, config, how, state=lambda linear: state_tensors(getattr(linear.weight, "quant_state", None))
    )
