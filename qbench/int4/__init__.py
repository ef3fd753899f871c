"""The project's own 4-bit weights: quantizer, packing and the linear that computes with them.

A library of its own: it imports torch, and nothing else of qbench. `limits` imports not even that, which is why the
names here are looked up when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.int4.linear import QuantLinear, quantize_model
    from qbench.int4.quantizer import QuantizedTensor, dequantize, quantize

__all__ = ["QuantLinear", "QuantizedTensor", "dequantize", "quantize", "quantize_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "linear" if name in ("QuantLinear", "quantize_model") else "quantizer"
    return getattr(import_module(f"{__name__}.{module}"), name)
