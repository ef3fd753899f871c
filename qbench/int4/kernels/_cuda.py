"""The operator behind `qbench.int4.kernels.cuda`: which kernel a product takes, its workspace and its launch."""

from __future__ import annotations

import ctypes
import itertools
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from qbench.int4.kernels.nvrtc import Function
from qbench.int4.kernels.variants import BLOCK, Variant, variant
from qbench.int4.limits import CUDA_MAX_ROWS

ALIGNED = 16
"""Columns, and bytes, to which a row of x is aligned."""
STREAMS, COUNTERS = 16, 1 << 16
_turns = itertools.count()
POINTER, INT = ctypes.c_void_p, ctypes.c_int


@torch.library.custom_op("qbench::w4a16_cuda", mutates_args=())
def w4a16_cuda(x: Tensor, words: Tensor, pairs: Tensor, bits: int, out_features: int, group_columns: int) -> Tensor:
    """x [M, K] in float16 or bfloat16 times a weight in the layout of `cuda.pack` -> [M, N] in the dtype of x."""
    if not len(x):
        return x.new_empty(0, out_features)
    # A module belongs to its GPU's context, which need not be the current one.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if len(x) > CUDA_MAX_ROWS:
            return F.linear(x, dequantized(words, pairs, bits, out_features, x.shape[1], group_columns, x.dtype))
        config = variant(len(x), out_features, x.shape[1], x.device)
        return product(x, words, pairs, bits, out_features, group_columns, config)


@w4a16_cuda.register_fake
def _(x: Tensor, words: Tensor, pairs: Tensor, bits: int, out_features: int, group_columns: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


def group_macro(group_columns: int) -> int:
    """GROUP of `weights.cuh`."""
    return group_columns if group_columns in (32, 64, 128) else 0


@cache
def _function(
    source: str, kernel: str, config: Variant | None, bits: int, bfloat: bool, group: int, device: int
) -> Function:
    macros = {"BITS": bits, "BFLOAT": int(bfloat), "GROUP": group} | (config.macros if config else {})
    return Function(source, kernel, macros, torch.device("cuda", device), config.shared_bytes if config else 0)


@cache
def workspace(device: int) -> Tensor:
    """Counters [STREAMS, COUNTERS] of a GPU: zeros, to which every product leaves them.

    Made when the first weight is packed: what a capture allocates would be zeroed by the replays of that graph alone.
    """
    return torch.zeros(STREAMS, COUNTERS, dtype=torch.int32, device=torch.device("cuda", device))


@cache
def _counters(device: int, stream: int) -> Tensor:
    """Those of a stream, on which products run one after another; of more than STREAMS streams, some share theirs."""
    return workspace(device)[next(_turns) % STREAMS]


def aligned(x: Tensor) -> Tensor:
    """x with rows that can be loaded 16 bytes at a time, as they almost always can."""
    if x.shape[1] % ALIGNED:
        return F.pad(x, (0, -x.shape[1] % ALIGNED))
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()


def product(
    x: Tensor, words: Tensor, pairs: Tensor, bits: int, out_features: int, group_columns: int, config: Variant
) -> Tensor:
    """The product by a given variant."""
    x = aligned(x)
    rows, columns = x.shape
    blocks = -(-columns // BLOCK)
    splits = min(config.splits, blocks)
    grid = (-(-out_features // config.outputs), splits, -(-rows // config.rows))
    out = x.new_empty(rows, out_features)
    parts = x.new_empty(splits if splits > 1 else 0, rows, out_features, dtype=torch.float32)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    launch = _function(
        f"{config.source}.cu",
        "product",
        config._replace(splits=1),
        bits,
        x.dtype == torch.bfloat16,
        group_macro(group_columns),
        x.device.index,
    )
    pointers = (x, words, pairs, out, parts, _counters(x.device.index, stream))
    launch(
        grid,
        config.threads,
        (
            *(tensor.data_ptr() for tensor in pointers),
            *(rows, out_features, columns, blocks, -(-group_columns // BLOCK)),
            *divmod(blocks, splits * config.deep),
        ),
        (POINTER,) * 6 + (INT,) * 7,
        stream,
    )
    return out


def dequantized(
    words: Tensor, pairs: Tensor, bits: int, out_features: int, in_features: int, group_columns: int, dtype: torch.dtype
) -> Tensor:
    """The weight [out_features, in_features] in a 16-bit dtype."""
    out = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    blocks = -(-in_features // BLOCK)
    bfloat, group = dtype == torch.bfloat16, group_macro(group_columns)
    launch = _function("dequantize.cu", "dequantize", None, bits, bfloat, group, words.device.index)
    launch(
        (-(-out_features // 64), blocks, 1),
        128,
        (*(t.data_ptr() for t in (words, pairs, out)), out_features, in_features, blocks, -(-group_columns // BLOCK)),
        (POINTER,) * 3 + (INT,) * 4,
        torch.cuda.current_stream(words.device).cuda_stream,
    )
    return out
