"""W4A16 products in Triton, for Hopper first.

    y[m, n] = sum over groups of s[g, n] * sum(x[m, k] (q[k, n] - 8)) + z[g, n] * sum(x[m, k])

Three ways, by the number of rows of x: up to 4 without tensor cores, every thread multiplying the codes it decodes; up
to 64 with them, a plane of 16 columns a product; above, and for float32, the weight is dequantized and torch
multiplies. The columns are split among programs, since a decode step has few rows to keep a GPU busy; parts are summed
up in a float32 workspace in a fixed order, so that results do not change from run to run.

Codes are decoded by their exponent: a code in the low bits of 0x6400 (float16) or 0x4300 (bfloat16) is the number
1024 + q or 128 + q, from which 1032 or 136 is subtracted exactly. A scale is applied to the float32 sums of a group.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.int4.kernels.tuning import Config, configuration
from qbench.int4.limits import TRITON_MAX_ROWS

ROWS_GEMV = 4
BLOCK = 128
"""Columns of a block of words."""
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Triton's interpreter computes with the bits of bfloat16 as if they were integers; float32 gives the same results."""


@triton.jit
def _decode(words, plane: tl.constexpr, dtype: tl.constexpr):
    """q - 8 of a plane, exactly, in float16 or bfloat16."""
    nibble = (words >> (4 * plane)) & 15
    # One `return`: Triton types a function by all of them, those of other dtypes included.
    if dtype == tl.float16:
        number = (nibble | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1032.0
    elif INTERPRETED:
        number = (nibble | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True).to(tl.float32) - 136.0
    else:
        number = (nibble | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True) - 136.0
    return number


@triton.jit
def _gemv(
    x, words, scales, zeros, parts, M, N, K, blocks, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, GROUP_PLANES: tl.constexpr,
) -> None:  # fmt: skip
    """parts[i, m, n]: the sum over every split-th block of columns from the i-th on; x is [M, K] with M <= BM."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    r = tl.arange(0, 16)
    total = tl.zeros((BM, 16, BN), dtype=tl.float32)
    for b in range(tl.program_id(1), blocks, tl.num_programs(1)):
        word = tl.load(words + (b * 16 + r[:, None]) * N + n[None, :], mask=n[None, :] < N, other=0,
                       eviction_policy="evict_first")  # fmt: skip
        for g in tl.static_range(8 // GROUP_PLANES):
            dot = tl.zeros((BM, 16, BN), dtype=tl.float32)
            sums = tl.zeros((BM, 16), dtype=tl.float32)
            for i in tl.static_range(GROUP_PLANES):
                k = b * 128 + (g * GROUP_PLANES + i) * 16 + r
                a = tl.load(x + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
                codes = _decode(word, g * GROUP_PLANES + i, x.dtype.element_ty).to(tl.float32)
                a = a.to(tl.float32)
                dot += a[:, :, None] * codes[None, :, :]
                sums += a
            # The last block may reach beyond the last group; x is 0 there.
            group = tl.minimum((b * 128 + g * GROUP_PLANES * 16) // group_size, groups - 1)
            s = tl.load(scales + group * N + n, mask=n < N, other=0.0).to(tl.float32)
            z = tl.load(zeros + group * N + n, mask=n < N, other=0.0).to(tl.float32)
            total += dot * s[None, None, :] + sums[:, :, None] * z[None, None, :]
    at = (tl.program_id(1) * M + m[:, None]) * N + n[None, :]
    tl.store(parts + at, tl.sum(total, axis=1), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def _gemm(
    x, words, scales, zeros, parts, M, N, K, blocks, groups, group_size,
    BM: tl.constexpr, BN: tl.constexpr, GROUP_PLANES: tl.constexpr,
) -> None:  # fmt: skip
    """As `_gemv`, for BM rows of x a program, on tensor cores."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    r = tl.arange(0, 16)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for b in range(tl.program_id(1), blocks, tl.num_programs(1)):
        word = tl.load(words + (b * 16 + r[:, None]) * N + n[None, :], mask=n[None, :] < N, other=0,
                       eviction_policy="evict_first")  # fmt: skip
        for g in tl.static_range(8 // GROUP_PLANES):
            dot = tl.zeros((BM, BN), dtype=tl.float32)
            sums = tl.zeros((BM,), dtype=tl.float32)
            for i in tl.static_range(GROUP_PLANES):
                k = b * 128 + (g * GROUP_PLANES + i) * 16 + r
                a = tl.load(x + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
                codes = _decode(word, g * GROUP_PLANES + i, x.dtype.element_ty)
                if INTERPRETED:
                    dot = tl.dot(a.to(tl.float32), codes.to(tl.float32), dot)
                else:
                    dot = tl.dot(a, codes, dot)
                sums += tl.sum(a.to(tl.float32), axis=1)
            group = tl.minimum((b * 128 + g * GROUP_PLANES * 16) // group_size, groups - 1)
            s = tl.load(scales + group * N + n, mask=n < N, other=0.0).to(tl.float32)
            z = tl.load(zeros + group * N + n, mask=n < N, other=0.0).to(tl.float32)
            total += dot * s[None, :] + sums[:, None] * z[None, :]
    at = (tl.program_id(1) * M + m[:, None]) * N + n[None, :]
    tl.store(parts + at, total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def _sum_parts(parts, out, size, SPLIT: tl.constexpr, BLOCK_SIZE: tl.constexpr) -> None:
    """out[i] = the sum of parts[:, i], in its dtype."""
    i = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    total = tl.zeros((BLOCK_SIZE,), dtype=tl.float32)
    for split in tl.static_range(SPLIT):
        total += tl.load(parts + split * size + i, mask=i < size, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


@triton.jit
def _dequantize(words, scales, zeros, out, N, K, groups, group_size, BN: tl.constexpr) -> None:
    """out[k, n] of the 128 columns of a block."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, 16)
    word = tl.load(words + (b * 16 + r[:, None]) * N + n[None, :], mask=n[None, :] < N, other=0,
                   eviction_policy="evict_first")  # fmt: skip
    for p in tl.static_range(8):
        k = b * 128 + p * 16 + r
        inside = (k[:, None] < K) & (n[None, :] < N)
        # A plane of 16 columns lies in one group.
        group = tl.minimum((b * 128 + p * 16) // group_size, groups - 1)
        s = tl.load(scales + group * N + n, mask=n < N, other=0.0).to(tl.float32)
        z = tl.load(zeros + group * N + n, mask=n < N, other=0.0).to(tl.float32)
        codes = (((word >> (4 * p)) & 15) - 8).to(tl.float32)
        value = codes * s[None, :] + z[None, :]
        tl.store(out + k[:, None] * N + n[None, :], value.to(out.dtype.element_ty), mask=inside)


@torch.library.custom_op("qbench::w4a16", mutates_args=())
def w4a16(x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """x [M, K] in float16, bfloat16 or float32 times the weight [N, K], packed -> [M, N] in the dtype of x."""
    rows, columns = words.shape[2], x.shape[1]
    if not len(x):
        return x.new_empty(0, rows)
    # Triton launches on the current device, whatever its arguments are on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if len(x) > TRITON_MAX_ROWS or x.dtype == torch.float32:
            return x @ dequantized(words, scales, zeros, columns, group_size, x.dtype)
        return product(x, words, scales, zeros, group_size, configuration(len(x), rows, columns, x.device))


@w4a16.register_fake
def _(x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    return x.new_empty(x.shape[0], words.shape[2])


def product(x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor, group_size: int, config: Config) -> Tensor:
    """The product with a given configuration, of up to TRITON_MAX_ROWS rows in 16 bits."""
    (m, k), (blocks, _, n) = x.shape, words.shape
    split = min(config.split_k, blocks)
    parts = torch.empty(split, m, n, dtype=torch.float32, device=x.device)
    gemv = m <= ROWS_GEMV
    kernel, block_m = (_gemv, triton.next_power_of_2(m)) if gemv else (_gemm, config.block_m)
    kernel[(triton.cdiv(n, config.block_n), split, 1 if gemv else triton.cdiv(m, block_m))](
        x, words, scales, zeros, parts, m, n, k, blocks, len(scales), group_size,
        BM=block_m, BN=config.block_n, GROUP_PLANES=min(group_size, BLOCK) // 16 if group_size < k else 8,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    out = x.new_empty(m, n)
    _sum_parts[(triton.cdiv(m * n, 1024),)](parts, out, m * n, SPLIT=split, BLOCK_SIZE=1024)
    return out


def dequantized(
    words: Tensor, scales: Tensor, zeros: Tensor, columns: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    """The weight [in_features, out_features] in `dtype`."""
    blocks, _, rows = words.shape
    out = torch.empty(columns, rows, dtype=dtype, device=words.device)
    _dequantize[(triton.cdiv(rows, 128), blocks)](
        words, scales, zeros, out, rows, columns, len(scales), group_size, BN=128
    )
    return out
