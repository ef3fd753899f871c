"""The project's C kernel for CPUs (`qbench/int4/csrc`), compiled at installation if a compiler is there.

From AVX2 on, activations run as 16-bit integers (`csrc/product_i16.c`), with AVX-512's VNNI where the machine has it;
three and more rows of bfloat16 activations by weights of 4 bits run on AMX. Everything else is computed in float32, by
what the compiler makes of the machine's own vectors. Large products on AMX and in float32 dequantize a block of rows,
while it fits the cache, and leave the product to torch.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qbench.int4 import native
from qbench.int4.kernels.base import Tensors, WeightSpec, full_scales, stored_scales
from qbench.int4.limits import (
    BLOCK_BYTES,
    BLOCK_BYTES_AMX,
    FLOAT_ROWS,
    TILE_ROWS,
    dequantize_from,
    takes_groups,
)
from qbench.int4.native import Weight
from qbench.int4.pack import row_bytes
from qbench.int4.quantizer import QuantizedTensor

K_ALIGN, MAX_SEGMENT = 32, 128
PACK_TILES = 64

name = "cpu"


def refusal(spec: WeightSpec, device: torch.device) -> str | None:
    """Other devices and bits, groups that are no multiple of 32, no compiler, or, for 8 bits, no AVX2."""
    if device.type != "cpu":
        return f"is for CPUs, not {device.type}"
    if spec.bits not in (3, 4, 8):
        return f"multiplies 3, 4 and 8 bits, not {spec.bits}"
    if spec.groups > 1 and not takes_groups(name, spec.group_columns):
        return f"needs a group_size that is a multiple of {K_ALIGN}, not {spec.group_columns}"
    if native.library() is None:
        return "was not compiled: install a C compiler, then `pip install --force-reinstall --no-deps qbench-llm`"
    if spec.bits == 8 and native.level() < native.INTEGERS_FROM:
        return "multiplies 8 bits only on CPUs with AVX2"
    return None


def pack(q: QuantizedTensor) -> dict[str, Tensor]:
    """Tensors as csrc/qint4.h has them.

    Words are int32 [tiles, kp / 8, 16], of 3 bits int32 [tiles, kp / 32, 3, 16], of 8 bits int8 [tiles, kp / 2, 16, 2];
    scales [tiles, groups, 2, 16].
    """
    rows, columns = q.shape
    padded = _padded(columns)
    tiles = -(-rows // TILE_ROWS)
    codes = q.qweight.contiguous()
    if q.bits == 8:
        words = torch.empty(tiles, padded // 2, TILE_ROWS, 2, dtype=torch.int8)
        for first in range(0, tiles, PACK_TILES):  # not at once: the weight would be there several times
            to = words[first : first + PACK_TILES]
            signed = (codes[first * TILE_ROWS : (first + PACK_TILES) * TILE_ROWS] ^ 128).view(torch.int8)
            even = F.pad(signed, (0, padded - columns, 0, len(to) * TILE_ROWS - len(signed)))
            to.copy_(even.view(len(to), TILE_ROWS, padded // 2, 2).transpose(1, 2))
    else:
        blocks = (padded // 8,) if q.bits == 4 else (padded // 32, 3)
        words = torch.empty(tiles, *blocks, TILE_ROWS, dtype=torch.int32)
        repack = native.loaded().qint4_pack if q.bits == 4 else native.loaded().qint4_pack_3
        repack(codes.data_ptr(), *codes.shape, padded, words.data_ptr())
    both = torch.stack(full_scales(q), dim=1)
    even = F.pad(both, (0, 0, 0, 0, 0, tiles * TILE_ROWS - rows))
    return {"words": words, "scales": even.view(tiles, TILE_ROWS, 2, -1).permute(0, 3, 2, 1).contiguous()}


def unpack(tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
    """The inverse of `pack`."""
    words, padded = tensors["words"], _padded(spec.in_features)
    if spec.bits == 8:
        signed = words.transpose(1, 2).reshape(-1, padded)[: spec.out_features, : spec.in_features]
        codes = signed.contiguous().view(torch.uint8) ^ 128
    else:
        codes = torch.empty(spec.out_features, row_bytes(spec.in_features, spec.bits), dtype=torch.uint8)
        repack = native.loaded().qint4_unpack if spec.bits == 4 else native.loaded().qint4_unpack_3
        repack(words.data_ptr(), *codes.shape, padded, codes.data_ptr())
        if spec.bits == 4 and spec.in_features % 2:
            codes[:, -1] &= 0xF
    both = tensors["scales"].permute(0, 3, 2, 1).reshape(-1, 2, spec.groups)[: spec.out_features]
    scales, zeros = both[:, 0].contiguous(), both[:, 1].contiguous()
    return spec.tensor(codes, *stored_scales(scales, zeros, spec))


def matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    """x [M, in_features] times the weight, in the dtype of x."""
    if torch.compiler.is_compiling():  # otherwise the way through torch's dispatcher would only cost time
        out: Tensor = w4a16_cpu(
            x, tensors["words"], tensors["scales"], spec.bits, spec.out_features, spec.group_columns
        )
        return out
    return _matmul(x, tensors, spec)


@torch.library.custom_op("qbench::w4a16_cpu", mutates_args=())
def w4a16_cpu(x: Tensor, words: Tensor, scales: Tensor, bits: int, out_features: int, group_columns: int) -> Tensor:
    """x [M, K] times a weight in the layout of `pack` -> [M, N] in the dtype of x, as torch.compile takes it."""
    spec = WeightSpec(out_features, x.shape[1], bits, group_columns, False, scales.dtype)
    return _matmul(x, {"words": words, "scales": scales}, spec)


@w4a16_cpu.register_fake
def _(x: Tensor, words: Tensor, scales: Tensor, bits: int, out_features: int, group_columns: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


def _matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    best, m = native.level(), x.shape[0]
    bfloat16 = x.dtype == torch.bfloat16 and best >= native.INTEGERS_FROM
    weight = _weight(tensors, spec)
    own = x.dtype == torch.float32 or bfloat16
    least = dequantize_from(native.LEVELS[best], spec.bits, bfloat16)
    out = x.new_empty(m, spec.out_features)
    dequantized = least is not None and m >= least
    if own and not dequantized:
        return _multiply(x, weight, spec, out)
    rows = max(1, m if own else FLOAT_ROWS)
    for first in range(0, m, rows):
        part, to = x[first : first + rows], out[first : first + rows]
        if dequantized:
            _dequantize_and_multiply(part if own else part.float(), weight, spec, to)
        else:
            to.copy_(_multiply(part.float(), weight, spec, part.new_empty(to.shape, dtype=torch.float32)))
    return out


def _multiply(x: Tensor, weight: Weight, spec: WeightSpec, out: Tensor) -> Tensor:
    """The product, into `out` [M, out_features], in the dtype of x."""
    m, bfloat16, threads = x.shape[0], x.dtype == torch.bfloat16, torch.get_num_threads()
    failed = native.loaded().qint4_matmul(
        weight, native.level(), x.data_ptr(), out.data_ptr(), m, bfloat16, _layout(spec).segment, threads
    )
    if failed:
        raise MemoryError(f"no memory for a product of {tuple(x.shape)} activations")
    return out


def _dequantize_and_multiply(x: Tensor, weight: Weight, spec: WeightSpec, out: Tensor) -> None:
    """The product by blocks of rows of the weight, which are in the dtype of x, into `out` [M, out_features]."""
    best = native.level()
    amx = x.dtype == torch.bfloat16 and native.LEVELS[best] == "amx"
    block_bytes = BLOCK_BYTES_AMX if amx else BLOCK_BYTES
    rows = max(1, block_bytes // (weight.kp * x.itemsize * TILE_ROWS)) * TILE_ROWS
    block = x.new_empty(rows, weight.kp)
    for first in range(0, spec.out_features, rows):
        last = min(first + rows, spec.out_features)
        tiles = first // TILE_ROWS, -(-last // TILE_ROWS)
        native.loaded().qint4_dequantize(
            weight, best, *tiles, x.dtype == torch.bfloat16, block.data_ptr(), torch.get_num_threads()
        )
        out[:, first:last] = F.linear(x, block[: last - first, : spec.in_features])


class _Layout(NamedTuple):
    """Sizes that csrc/qint4.h wants to know."""

    padded: int  # columns
    groups: int
    group_columns: int
    segment: int  # columns that are summed up before a scale is applied


@cache
def _layout(spec: WeightSpec) -> _Layout:
    """Segments are as long as can be, up to MAX_SEGMENT, and cut no group. Kept: every product asks."""
    padded = _padded(spec.in_features)
    if spec.groups == 1:
        return _Layout(padded, 1, padded, MAX_SEGMENT)
    segment = next(size for size in (MAX_SEGMENT, 64, K_ALIGN) if spec.group_columns % size == 0)
    return _Layout(padded, spec.groups, spec.group_columns, segment)


def _weight(tensors: Tensors, spec: WeightSpec) -> Weight:
    words, scales, layout = tensors["words"], tensors["scales"], _layout(spec)
    return Weight(
        words.data_ptr(),
        scales.data_ptr(),
        scales.dtype == torch.float16,
        spec.bits,
        spec.out_features,
        spec.in_features,
        layout.padded,
        layout.groups,
        layout.group_columns,
    )


def _padded(columns: int) -> int:
    return -(-columns // K_ALIGN) * K_ALIGN
