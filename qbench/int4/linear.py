"""`QuantLinear`: a linear layer that holds 4-bit weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qbench.int4.quantize import QuantizedTensor, dequantize, quantize


class QuantLinear(nn.Module):
    """y = x W' + b with W' [out_features, in_features] as 4-bit codes; W' is dequantized for each call."""

    kernel = "reference"

    qweight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group_size = weight.group_size
        self.register_buffer("qweight", weight.qweight)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, group_size: int = 128, name: str = "weight") -> QuantLinear:
        """Quantize a linear's weight; its bias is kept as it is.

        Raises:
            ValueError: see `quantize`.
        """
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(quantize(linear.weight.detach(), group_size=group_size, name=name), bias)

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantized weight [out_features, in_features]."""
        shape = torch.Size((self.out_features, self.in_features))
        return dequantize(QuantizedTensor(self.qweight, self.scales, self.zeros, shape, self.group_size), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.group_size}"


def quantize_model(model: nn.Module, names: Iterable[str], *, group_size: int = 128) -> None:
    """Replace the named `nn.Linear`s of a model, in place, each freed before the next one is quantized.

    Raises:
        ValueError: a weight cannot be quantized; the message names it.
    """
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, QuantLinear.from_linear(linear, group_size=group_size, name=f"{name}.weight"))
