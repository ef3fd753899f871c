"""Codes as a stream of bits: the plain layout in which quantized weights are stored and exchanged."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BITS = (2, 3, 4, 8)
"""Of a code."""


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a packed row: 8 codes of 3 bits take 3 bytes together, those of 2, 4 and 8 bits fill single bytes."""
    count, size = _whole(bits)
    return -(-columns // count) * size


def pack(codes: Tensor, bits: int = 4) -> Tensor:
    """Pack uint8 codes below 2^bits, [rows, columns], into uint8 [rows, row_bytes(columns, bits)].

    Column c is in the bits c * bits ... (c + 1) * bits - 1 of its row, counted from the lowest bit of the first byte;
    what a row's last bytes have no column for is 0.
    """
    if bits == 8:
        return codes
    count, size = _whole(bits)
    padded = F.pad(codes, (0, -codes.shape[1] % count))
    packed = codes.new_zeros(codes.shape[0], padded.shape[1] // count * size)
    for i in range(count):
        byte, shift = divmod(i * bits, 8)
        packed[:, byte::size] |= padded[:, i::count] << shift
        if shift + bits > 8:
            packed[:, byte + 1 :: size] |= padded[:, i::count] >> (8 - shift)
    return packed


def unpack(packed: Tensor, columns: int, bits: int = 4, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The inverse of `pack`: codes [rows, columns] as `dtype`."""
    if bits == 8:
        return packed[:, :columns].to(dtype)
    count, size = _whole(bits)
    codes = packed.new_empty(packed.shape[0], packed.shape[1] // size * count, dtype=dtype)
    for i in range(count):
        byte, shift = divmod(i * bits, 8)
        part = packed[:, byte::size] >> shift
        if shift + bits > 8:
            part |= packed[:, byte + 1 :: size] << (8 - shift)
        codes[:, i::count] = part & ((1 << bits) - 1)
    return codes[:, :columns]


def _whole(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and these bytes."""
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared
