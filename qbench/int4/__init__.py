"""The project's own 4-bit weights: quantizer, packing and the linear that computes with them."""

from qbench.int4.linear import QuantLinear, quantize_model
from qbench.int4.quantize import QuantizedTensor, dequantize, quantize

__all__ = ["QuantLinear", "QuantizedTensor", "dequantize", "quantize", "quantize_model"]
