"""Dequantize, then multiply: on every device, for every weight, and what the other kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qbench.int4.kernels.base import Tensors, WeightSpec
from qbench.int4.quantizer import QuantizedTensor, dequantize

name = "reference"


def refusal(spec: WeightSpec, device: torch.device) -> str | None:
    """Never."""
    return None


def pack(q: QuantizedTensor) -> dict[str, Tensor]:
    """The tensors as they are."""
    return q.tensors()


def unpack(tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
    """The tensors as they are."""
    return spec.tensor(tensors["qweight"], tensors["scales"], tensors.get("zeros"))


def matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    """x [M, in_features] times the weight as dequantized in the dtype of x."""
    return F.linear(x, dequantize(unpack(tensors, spec), x.dtype))
