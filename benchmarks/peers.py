"""Linears of 4 bits by libraries that qbench loads no models with, of the same weights, for `linears.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qbench.int4 import QuantizedTensor, dequantize, quantize
from qbench.int4.pack import unpack

GROUP_SIZE = 128
TOLERANCE = 2e-2
"""Relative L2 error against float64: the rounding of bfloat16, and of a zero where it has an offset."""


class Tinygemm(nn.Module):
    """torch.ops.aten._weight_int4pack_mm, which takes bfloat16 only."""

    takes = torch.bfloat16

    def __init__(self, q: QuantizedTensor) -> None:
        super().__init__()
        self.in_features = q.shape[1]
        codes = unpack(q.qweight, q.shape[1])
        words = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack(words, 8))
        both = torch.stack((q.scales, q.zeros), dim=-1).transpose(0, 1)  # its weight is (code - 8) x scale + zero, too
        self.register_buffer("scales_and_zeros", both.contiguous().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """x bfloat16 [..., in]."""
        rows = x.flatten(0, -2)
        out: Tensor = torch.ops.aten._weight_int4pack_mm(rows, self.weight, GROUP_SIZE, self.scales_and_zeros)
        return out.view(*x.shape[:-1], -1)


class GemLite(nn.Module):
    """GemLite's Triton kernels, 4-bit weights and 16-bit activations."""

    def __init__(self, q: QuantizedTensor) -> None:
        super().__init__()
        from gemlite.helper import A16Wn

        self.in_features = q.shape[1]
        zeros = 8 - q.zeros.float() / q.scales.float()  # its weight is (code - zero) x scale
        maker = A16Wn(device=str(q.scales.device), dtype=q.scales.dtype)
        self.linear = maker.from_weights(
            unpack(q.qweight, q.shape[1]), q.scales.reshape(-1, 1), zeros.reshape(-1, 1), 4, GROUP_SIZE
        )

    def forward(self, x: Tensor) -> Tensor:
        """x in 16 bits [..., in]."""
        out: Tensor = self.linear(x)
        return out


PEERS: Mapping[str, Callable[[QuantizedTensor], nn.Module]] = {"tinygemm": Tinygemm, "gemlite": GemLite}


def of(linear: nn.Linear, make: Callable[[QuantizedTensor], nn.Module]) -> nn.Module:
    """A library's linear of the same weight in 4 bits.

    Raises:
        ValueError: its product is wrong.
    """
    q = quantize(linear.weight.data, group_size=GROUP_SIZE, scale_dtype=linear.weight.dtype, search="none")
    module = make(q)
    x = torch.randn(3, q.shape[1], device=linear.weight.device).to(getattr(module, "takes", linear.weight.dtype))
    expected = x.double() @ dequantize(q, torch.float64).T
    error = ((module(x).double() - expected).norm() / expected.norm()).item()
    if not error < TOLERANCE:
        raise ValueError(f"its product is wrong, relative error {error:.3f}")
    return module
