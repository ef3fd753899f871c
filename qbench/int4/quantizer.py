"""Group-wise integer weights, by plain rounding or by a search for the least squared error.

A row is cut into groups of `group_size` consecutive weights; the last group may be shorter. Every group has a scale s
and an offset z, both stored in 16 bits, and a weight w of b bits is stored as the code q:

    w' = s (q - 2^(b-1)) + z        q = clamp(round((w - z) / s) + 2^(b-1), 0, 2^b - 1)

`zeros` holds z, the value of the middle code, as in the int4pack kernels of torch; symmetric weights have no z. Codes
are computed with s and z as they are stored, after their rounding to 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qbench.int4 import fit
from qbench.int4.pack import BITS, pack, unpack

PER_ROW = -1
"""The group size that means a whole row."""
PER_TENSOR = 0
"""The group size that means the whole weight."""

Search = Literal["none", "mse"]

CHUNK_BYTES = 1 << 21
"""float32 bytes of the weights that are fitted together on a CPU: they and what is derived stay in its cache."""
CHUNK_BYTES_GPU = 1 << 28


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantized weight of `shape` [out_features, in_features]."""

    qweight: Tensor
    """uint8 [out_features, row_bytes(in_features, bits)], see `qbench.int4.pack`."""
    scales: Tensor
    """float16 or bfloat16 [out_features, groups]; [1, 1] with one scale for the whole tensor."""
    zeros: Tensor | None
    """As `scales`: the value of the middle code. None for symmetric weights, where it is 0."""
    shape: torch.Size
    bits: int
    group_size: int
    """Weights a group; PER_ROW, PER_TENSOR."""

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        zeros = {} if self.zeros is None else {"zeros": self.zeros}
        return {"qweight": self.qweight, "scales": self.scales, **zeros}


def quantize(
    weight: Tensor,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    search: Search = "mse",
    scale_dtype: torch.dtype | None = None,
    name: str = "weight",
) -> QuantizedTensor:
    """Quantize a weight [out_features, in_features], in float32 arithmetic, on its own device.

    Args:
        bits: 2, 3, 4 or 8.
        group_size: consecutive weights of a row that share a scale and an offset; PER_ROW (-1) for a whole row,
            PER_TENSOR (0) for the whole weight.
        symmetric: no offset; the middle code stands for 0.
        search: "none" takes the range of a group as it is; "mse" looks for the scale and offset of the least weighted
            squared error; the unweighted one is in no group more than that of "none" (see `qbench.int4.fit`).
        scale_dtype: float16 or bfloat16; the weight's own dtype if it is one of them, else bfloat16.
        name: what an error calls the tensor.

    Raises:
        ValueError: the weight is not a matrix, holds NaN or infinity, or its range does not fit the scales' dtype; an
            option that does not exist.
    """
    check(weight, bits, group_size, search, name)
    scale_dtype = scale_dtype or (weight.dtype if weight.itemsize == 2 else torch.bfloat16)
    rounding = fit.Rounding(bits, symmetric, scale_dtype)
    out_features, in_features = weight.shape
    size = group_columns(in_features, group_size) if group_size != PER_TENSOR else in_features
    groups = 1 if group_size == PER_TENSOR else -(-in_features // size)
    codes = weight.new_empty(weight.shape, dtype=torch.uint8)
    scales = weight.new_empty((out_features if group_size != PER_TENSOR else 1, groups), dtype=scale_dtype)
    zeros = torch.zeros_like(scales)
    whole = weight if group_size != PER_TENSOR else weight.reshape(1, -1)
    for rows in _chunks(whole):
        for columns, at in _parts(whole.shape[1], size if group_size != PER_TENSOR else whole.shape[1]):
            part = whole[rows, columns].float()
            grouped = part.reshape(-1, part.shape[1] // (at.stop - at.start))
            q, s, z = fit.fit(grouped, rounding, search)
            codes.view(whole.shape)[rows, columns] = q.view(part.shape)
            scales[rows, at], zeros[rows, at] = s.view(part.shape[0], -1), z.view(part.shape[0], -1)
    if not (torch.isfinite(scales).all() and torch.isfinite(zeros).all()):
        raise ValueError(f"{name}: its range does not fit {scale_dtype} scales")
    return QuantizedTensor(pack(codes, bits), scales, None if symmetric else zeros, weight.shape, bits, group_size)


def dequantize(q: QuantizedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out_features, in_features] that the codes stand for, in the arithmetic of `dtype`."""
    columns = q.shape[1]
    weight = unpack(q.qweight, columns, q.bits, dtype).sub_(1 << (q.bits - 1))
    scales, zeros = q.scales.to(dtype), None if q.zeros is None else q.zeros.to(dtype)
    # In place: a model's forward does this for every linear, and fresh memory costs more than the arithmetic.
    for part, at in _parts(columns, group_columns(columns, q.group_size)):
        grouped = weight[:, part].view(len(weight), at.stop - at.start, -1)
        grouped.mul_(scales[:, at, None])
        if zeros is not None:
            grouped.add_(zeros[:, at, None])
    return weight


def group_columns(columns: int, group_size: int) -> int:
    """Columns of a group in a row of so many."""
    return columns if group_size in (PER_ROW, PER_TENSOR) else min(group_size, columns)


def check(weight: Tensor, bits: int, group_size: int, search: str, name: str) -> None:
    """Refuse a weight or an option that cannot be quantized.

    Raises:
        ValueError: see `quantize`.
    """
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"{name}: expected [out_features, in_features], got shape {tuple(weight.shape)}")
    if bits not in BITS:
        raise ValueError(f"{name}: bits must be one of {', '.join(map(str, BITS))}, not {bits}")
    if group_size < PER_ROW:
        raise ValueError(f"{name}: group_size must be positive, -1 for a row or 0 for the tensor, not {group_size}")
    if search not in ("none", "mse"):
        raise ValueError(f'{name}: search must be "none" or "mse", not {search!r}')
    # The extremes are finite only if everything is; isfinite itself would take several times the weight's memory.
    if not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
        raise ValueError(f"{name}: holds NaN or infinity and cannot be quantized")


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Slices of rows that are worked on together."""
    limit = CHUNK_BYTES if weight.device.type == "cpu" else CHUNK_BYTES_GPU
    rows = max(1, limit // (4 * weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        yield slice(start, min(start + rows, weight.shape[0]))


def _parts(columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """(columns, groups): those of whole groups, and those of a short last one."""
    whole = columns // size
    if whole:
        yield slice(0, whole * size), slice(0, whole)
    if columns % size:
        yield slice(whole * size, columns), slice(whole, whole + 1)
