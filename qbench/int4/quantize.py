"""Group-wise asymmetric round-to-nearest.

A row is cut into groups of `group_size` consecutive weights; the last group may be shorter. Every group has a scale s
and an integer zero point z, and a weight w is stored as the code q:

    s = (max(w, 0) - min(w, 0)) / 15        z = round(-min(w, 0) / s)
    q = clamp(round(w / s) + z, 0, 15)      w' = s (q - z)

The range of a group always contains 0, so that z is itself a code and 0 is stored exactly. Codes are computed with the
scale as it is stored, after its rounding to 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.int4.pack import pack, unpack

MAX_CODE = 15


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantized weight of `shape` [out_features, in_features]."""

    qweight: Tensor
    """uint8 [out_features, ceil(in_features / 2)], two codes a byte (see `qbench.int4.pack`)."""
    scales: Tensor
    """float16 or bfloat16 [out_features, groups]."""
    zeros: Tensor
    """uint8 [out_features, groups], the code of 0."""
    shape: torch.Size
    group_size: int
    """Weights a group; -1 for whole rows."""


def quantize(
    weight: Tensor, *, group_size: int = 128, scale_dtype: torch.dtype | None = None, name: str = "weight"
) -> QuantizedTensor:
    """Quantize a weight [out_features, in_features] to 4 bits, in float32 arithmetic, on its own device.

    Args:
        group_size: consecutive weights of a row that share a scale and a zero point; -1 for a whole row.
        scale_dtype: float16 or bfloat16; the weight's own dtype if it is one of them, else float16.
        name: what an error calls the tensor.

    Raises:
        ValueError: the weight is not a matrix, holds NaN or infinity, or its range does not fit the scales' dtype.
    """
    if weight.ndim != 2:
        raise ValueError(f"{name}: expected [out_features, in_features], got shape {tuple(weight.shape)}")
    if group_size != -1 and group_size < 1:
        raise ValueError(f"{name}: group_size must be positive, or -1 for a whole row, not {group_size}")
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}: holds NaN or infinity and cannot be quantized")
    scale_dtype = scale_dtype or (weight.dtype if weight.itemsize == 2 else torch.float16)

    columns = weight.shape[1]
    groups = _grouped(weight.float(), group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / MAX_CODE).to(scale_dtype)
    if not torch.isfinite(scales).all():
        raise ValueError(f"{name}: its range does not fit {scale_dtype} scales")
    step = torch.where(scales == 0, 1.0, scales.float())
    zeros = (-low / step).round().clamp(0, MAX_CODE)
    codes = ((groups / step[..., None]).round() + zeros[..., None]).clamp(0, MAX_CODE)
    flat = codes.to(torch.uint8).flatten(start_dim=1)[:, :columns]
    return QuantizedTensor(pack(flat), scales, zeros.to(torch.uint8), weight.shape, group_size)


def dequantize(q: QuantizedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out_features, in_features] that the codes stand for: s (q - z), rounded once to `dtype`."""
    columns = q.shape[1]
    size = _group_columns(columns, q.group_size)
    whole = columns // size
    weight = unpack(q.qweight, columns, dtype)
    zeros, scales = q.zeros[..., None].to(dtype), q.scales[..., None].to(dtype)
    # In place: a model's forward does this for every linear, and fresh memory costs more than the arithmetic.
    weight[:, : whole * size].view(-1, whole, size).sub_(zeros[:, :whole]).mul_(scales[:, :whole])
    if columns % size:
        weight[:, whole * size :].sub_(zeros[:, -1]).mul_(scales[:, -1])
    return weight


def _group_columns(columns: int, group_size: int) -> int:
    return columns if group_size == -1 else min(group_size, columns)


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    """[rows, columns] as [rows, groups, size]; a short last group is filled up with its own last element.

    The filling changes neither the minimum nor the maximum of the group, and is cut off again.
    """
    columns = rows.shape[1]
    size = _group_columns(columns, group_size)
    missing = -columns % size
    if missing:
        rows = torch.cat((rows, rows[:, -1:].expand(-1, missing)), dim=1)
    return rows.view(rows.shape[0], -1, size)
