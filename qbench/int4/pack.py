"""Two 4-bit codes a byte."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pack(codes: Tensor) -> Tensor:
    """Pack uint8 codes of 0..15, [rows, columns], into uint8 [rows, ceil(columns / 2)].

    Column 2i is the low nibble of byte i, column 2i + 1 the high one; the high nibble of an odd row's last byte is 0.
    """
    even = F.pad(codes, (0, codes.shape[1] % 2))
    return even[:, 0::2] | (even[:, 1::2] << 4)


def unpack(packed: Tensor, columns: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The inverse of `pack`: codes [rows, columns] as `dtype`, written once, without intermediate bytes."""
    codes = packed.new_empty(packed.shape[0], 2 * packed.shape[1], dtype=dtype)
    codes[:, 0::2] = packed & 0xF
    codes[:, 1::2] = packed >> 4
    return codes[:, :columns]
