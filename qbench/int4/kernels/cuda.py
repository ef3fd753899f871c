"""The project's CUDA kernels (see `csrc/cuda`), from compute capability 8.0 on.

Layout: words int32 [tiles, 2 blocks, 32, 4], of 3 bits [tiles, blocks, 192], a tile being 16 outputs and a block 128
columns, as `weights.cuh` says; pairs [tiles, groups, 16, 2], scale and zero of an output. Outputs beyond the last and
columns beyond the last are there and never used.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from qbench.int4 import limits
from qbench.int4.kernels import nvrtc
from qbench.int4.kernels.base import Tensors, WeightSpec, full_scales, stored_scales
from qbench.int4.pack import pack as pack_codes
from qbench.int4.pack import unpack as unpack_codes
from qbench.int4.quantizer import QuantizedTensor, dequantize

TILE, BLOCK = 16, 128

name = "cuda"


def refusal(spec: WeightSpec, device: torch.device) -> str | None:
    """Other devices, bits and group sizes; no compiler."""
    if device.type != "cuda":
        return f"is for CUDA, not {device.type}"
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < nvrtc.OLDEST:
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    if spec.bits not in (3, 4):
        return f"multiplies 3 and 4 bits, not {spec.bits}"
    if spec.groups > 1 and not limits.takes_groups(name, spec.group_columns):
        return f"needs a group_size of 32, 64 or a multiple of {BLOCK}, not {spec.group_columns}"
    return nvrtc.missing()


def pack(q: QuantizedTensor) -> dict[str, Tensor]:
    """See the module's docstring."""
    rows, columns = q.shape
    tiles, blocks = -(-rows // TILE), -(-columns // BLOCK)
    codes = q.qweight.new_zeros(tiles * TILE, blocks * BLOCK)
    codes[:rows, :columns] = unpack_codes(q.qweight, columns, q.bits)
    # tile, r, g | half of a block, t, i, h, e: the letters of weights.cuh
    parts = codes.view(tiles, 2, 8, 2 * blocks, 4, 4, 2, 2)
    words = torch.zeros(tiles, 8, 2 * blocks, 4, 4, dtype=torch.int32, device=codes.device)
    for r, h, e in itertools.product((0, 1), repeat=3):
        words |= parts[:, r, :, :, :, :, h, e].to(torch.int32) << (4 * (r + 2 * h) + 16 * e)
    words = words.permute(0, 2, 1, 3, 4).reshape(tiles, 2 * blocks, 32, 4).contiguous()
    if q.bits == 3:
        words = _three_of_four(words)
    if words.is_cuda:
        from qbench.int4.kernels import _cuda

        _cuda.workspace(words.device.index)
        # A product may load its weights while the kernel before it still runs.
        torch.cuda.synchronize(words.device)
    return {"words": words, "pairs": _pairs(q, tiles, blocks)}


LOW, HIGH = 0x33333333, 0x11111111
"""Of the nibbles of a word: the low two bits, and the lowest one."""


def _three_of_four(words: Tensor) -> Tensor:
    """Words [tiles, 2 blocks, 32, 4] of codes below 8 in [tiles, blocks, 192]."""
    halves = words.view(len(words), -1, 2, 32, 4)
    low = (halves[..., 0::2] & LOW) | (halves[..., 1::2] & LOW) << 2
    high = torch.zeros_like(halves[..., 0])
    for i in range(4):
        high |= (halves[..., i] >> 2 & HIGH) << i
    return torch.cat((low.transpose(2, 3).flatten(2), high.transpose(2, 3).flatten(2)), dim=-1)


def _four_of_three(words: Tensor) -> Tensor:
    """The inverse of `_three_of_four`."""
    tiles, blocks = words.shape[:2]
    low = words[..., :128].reshape(tiles, blocks, 32, 2, 2).transpose(2, 3)
    high = words[..., 128:].reshape(tiles, blocks, 32, 2).transpose(2, 3)
    four = [(low[..., i // 2] >> i % 2 * 2 & LOW) | (high >> i & HIGH) << 2 for i in range(4)]
    return torch.stack(four, dim=-1).flatten(1, 2)


def _pairs(q: QuantizedTensor, tiles: int, blocks: int) -> Tensor:
    spec = WeightSpec.of(q)
    groups = spec.groups if spec.groups == 1 else -(-blocks * BLOCK // spec.group_columns)
    both = torch.stack(full_scales(q), dim=-1)
    padded = both.new_zeros(tiles * TILE, groups, 2)
    padded[: both.shape[0], : both.shape[1]] = both
    return padded.view(tiles, TILE, groups, 2).transpose(1, 2).contiguous()


def unpack(tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
    """The inverse of `pack`."""
    words = tensors["words"] if spec.bits == 4 else _four_of_three(tensors["words"])
    tiles, halves = words.shape[:2]
    codes = torch.empty(tiles, 2, 8, halves, 4, 4, 2, 2, dtype=torch.uint8, device=words.device)
    parts = words.view(tiles, halves, 8, 4, 4).transpose(1, 2)
    for r, h, e in itertools.product((0, 1), repeat=3):
        codes[:, r, :, :, :, :, h, e] = (parts >> (4 * (r + 2 * h) + 16 * e)) & 15
    plain = codes.view(tiles * TILE, halves * BLOCK // 2)[: spec.out_features, : spec.in_features]
    pairs = tensors["pairs"].transpose(1, 2).flatten(0, 1)[: spec.out_features, : spec.groups]
    scales, zeros = pairs[..., 0].contiguous(), pairs[..., 1].contiguous()
    return spec.tensor(pack_codes(plain, spec.bits), *stored_scales(scales, zeros, spec))


def matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    """x [M, in_features] times the weight, a custom operator, so that CUDA graphs and torch.compile take it."""
    if x.dtype == torch.float32:  # no tensor cores for it
        return F.linear(x, dequantize(unpack(tensors, spec), x.dtype))
    from qbench.int4.kernels import _cuda  # declares the operator

    # Scales in another type than x, and only they, are rounded to it at every call.
    pairs = tensors["pairs"].to(x.dtype)
    out: Tensor = _cuda.w4a16_cuda(x, tensors["words"], pairs, spec.bits, spec.out_features, spec.group_columns)
    return out
