"""LLM.int8() by bitsandbytes, through transformers' own loader.

Weights are 8-bit integers with a float32 scale a row, inputs become 8-bit integers with a scale a token, and columns of
an input that hold an outlier are multiplied in 16 bits (Dettmers et al. 2022, arXiv:2208.07339). bitsandbytes rounds
inputs to float16 on the way, whatever the run computes in.
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


class Int8(Backend):
    """bitsandbytes' LLM.int8(): 8-bit weights and inputs, outliers of the inputs in 16 bits."""

    title: ClassVar[str] = "LLM.int8(): 8-bit weights and inputs, outliers in 16 bits, by bitsandbytes"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[nf4]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "bitsandbytes")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "bitsandbytes.nn")
    color: ClassVar[str | None] = "#882255"
    hub_library: ClassVar[str] = "transformers"
    kind: Literal["int8"] = "int8"
    llm_int8_threshold: float = Field(
        default=6.0, ge=0, description="inputs from this magnitude on are outliers; 0: none is looked for"
    )

    @property
    def weight_bits(self) -> int:
        return 8

    @property
    def capturable(self) -> bool:
        """The columns with outliers are counted on the host."""
        return self.llm_int8_threshold == 0

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        return out_features * in_features + 4 * out_features

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        """The input in 8 bits, and the product as int32; on a CPU again as float32, and twice while it is scaled."""
        copies = 4 * 4 if target.device == "cpu" else 4
        held = copies * tokens * out_features + tokens * in_features
        if target.device == "cpu" and "avx512f" not in target.cpu_features:
            held = max(held, 4 * (in_features * (out_features + tokens) + out_features * tokens))  # all in float32
        return held - target.value_bytes * tokens * out_features

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """The model is there in 16 bit, twice in part, while it is quantized."""
        return max(weight_bytes, 2 * 2 * parameters)


CONFIG = Int8


def load(options: LoadOptions, config: Int8, calibration: Calibration | None) -> LoadedModel:
    """Quantize while loading. Embeddings and the output head stay in `options.dtype`; no calibration is needed."""
    import bitsandbytes  # noqa: F401  # transformers says of a missing one less than Python
    from transformers import BitsAndBytesConfig

    from qbench.backends._replaced import load_quantized
    from qbench.compat.bitsandbytes import state_tensors

    how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.llm_int8_threshold)
    return load_quantized(options, config, how, state=lambda linear: state_tensors(linear.state))
