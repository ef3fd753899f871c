"""What a kernel is: a layout of its own for the codes, and the product of activations with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qbench.int4.quantizer import PER_TENSOR, QuantizedTensor, group_columns

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """What a quantized weight is, apart from its tensors."""

    out_features: int
    in_features: int
    bits: int
    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype

    @classmethod
    def of(cls, q: QuantizedTensor) -> WeightSpec:
        """That of a quantized tensor."""
        return cls(q.shape[0], q.shape[1], q.bits, q.group_size, q.zeros is None, q.scales.dtype)

    @property
    def group_columns(self) -> int:
        """Columns that share a scale; the last group of a row may have fewer."""
        return group_columns(self.in_features, self.group_size)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.in_features // self.group_columns)

    def tensor(self, qweight: Tensor, scales: Tensor, zeros: Tensor | None) -> QuantizedTensor:
        """A quantized tensor of this kind."""
        shape = torch.Size((self.out_features, self.in_features))
        return QuantizedTensor(qweight, scales, zeros, shape, self.bits, self.group_size)


class Kernel(Protocol):
    """One way to multiply by a quantized weight."""

    @property
    def name(self) -> str:
        """The module's, and what a row's `kernel` column says."""

    def refusal(self, spec: WeightSpec, device: torch.device) -> str | None:
        """Why this kernel cannot serve such a weight on such a device; None where it can."""

    def pack(self, q: QuantizedTensor) -> dict[str, Tensor]:
        """The weight in this kernel's layout."""

    def unpack(self, tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
        """The inverse of `pack`, bit for bit."""

    def matmul(self, x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
        """x [M, in_features], contiguous, float16, bfloat16 or float32 -> [M, out_features] in the dtype of x."""


def full_scales(q: QuantizedTensor) -> tuple[Tensor, Tensor]:
    """(scales, zeros) [out_features, groups], where q may have one of all, or no zeros."""
    zeros = torch.zeros_like(q.scales) if q.zeros is None else q.zeros
    rows = q.shape[0]
    return q.scales.expand(rows, -1).contiguous(), zeros.expand(rows, -1).contiguous()


def stored_scales(scales: Tensor, zeros: Tensor, spec: WeightSpec) -> tuple[Tensor, Tensor | None]:
    """The inverse of `full_scales`, given what the weight is."""
    if spec.group_size == PER_TENSOR:
        scales, zeros = scales[:1], zeros[:1]
    return scales.to(spec.scale_dtype), None if spec.symmetric else zeros.to(spec.scale_dtype)
