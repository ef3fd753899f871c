"""Several codes a byte: the plain layout in which quantized weights are stored and exchanged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PER_BYTE = {2: 4, 3: 2, 4: 2, 8: 1}
"""Codes of so many bits that share a byte; a code of 3 bits takes the place of 4."""


def pack(codes: Tensor, bits: int = 4) -> Tensor:
    """Pack uint8 codes below 2^bits, [rows, columns], into uint8 [rows, ceil(columns / PER_BYTE[bits])].

    The first column is in the lowest bits of a byte; what a row's last byte has no column for is 0.
    """
    per_byte = PER_BYTE[bits]
    if per_byte == 1:
        return codes
    padded = F.pad(codes, (0, -codes.shape[1] % per_byte))
    packed = padded[:, 0::per_byte].clone()
    for i in range(1, per_byte):
        packed |= padded[:, i::per_byte] << (i * 8 // per_byte)
    return packed


def unpack(packed: Tensor, columns: int, bits: int = 4, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The inverse of `pack`: codes [rows, columns] as `dtype`, written once, without intermediate bytes."""
    per_byte = PER_BYTE[bits]
    if per_byte == 1:
        return packed[:, :columns].to(dtype)
    width = 8 // per_byte
    codes = packed.new_empty(packed.shape[0], per_byte * packed.shape[1], dtype=dtype)
    for i in range(per_byte):
        codes[:, i::per_byte] = (packed >> (i * width)) & ((1 << width) - 1)
    return codes[:, :columns]
