"""The project's Triton kernels for CUDA (see `qbench.int4.kernels._triton`).

Layout: words int32 [blocks, 16, out_features], a block being 128 columns. Word (b, r, n) holds, from its lowest bits,
the codes of the columns 128 b + 16 p + r, p = 0..7, of row n. One load of [16, BN] words thus gives eight planes
[16, BN] of codes, each for 16 neighbouring columns: nothing is interleaved, and every plane meets a contiguous slice of
x. scales and zeros are [groups, out_features].
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from qbench.int4 import limits
from qbench.int4.kernels.base import Tensors, WeightSpec, full_scales, stored_scales
from qbench.int4.pack import pack as pack_codes
from qbench.int4.pack import unpack as unpack_codes
from qbench.int4.quantizer import QuantizedTensor

BLOCK, PLANES, PLANE = 128, 8, 16

name = "triton"


def refusal(spec: WeightSpec, device: torch.device) -> str | None:
    """Other devices (but with TRITON_INTERPRET=1, where Triton runs anywhere), bits and group sizes; no Triton."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"is for CUDA, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if spec.bits != 4:
        return f"multiplies 4 bits, not {spec.bits}"
    if spec.groups > 1 and not limits.takes_groups(name, spec.group_columns):
        return f"needs a group_size of 32, 64 or a multiple of {BLOCK}, not {spec.group_columns}"
    return None


def pack(q: QuantizedTensor) -> dict[str, Tensor]:
    """See the module's docstring; columns beyond the last are code 0."""
    rows, columns = q.shape
    blocks = -(-columns // BLOCK)
    codes = q.qweight.new_zeros(rows, blocks * BLOCK)
    codes[:, :columns] = unpack_codes(q.qweight, columns)
    planes = codes.view(rows, blocks, PLANES, PLANE)
    words = torch.zeros(rows, blocks, PLANE, dtype=torch.int32, device=codes.device)
    for p in range(PLANES):
        words |= planes[:, :, p].to(torch.int32) << (4 * p)
    scales, zeros = full_scales(q)
    return {
        "words": words.permute(1, 2, 0).contiguous(),
        "scales": scales.T.contiguous(),
        "zeros": zeros.T.contiguous(),
    }


def unpack(tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
    """The inverse of `pack`."""
    words = tensors["words"].permute(2, 0, 1)
    planes = [((words >> (4 * p)) & 15).to(torch.uint8) for p in range(PLANES)]
    codes = torch.stack(planes, dim=2).flatten(1)[:, : spec.in_features]
    scales, zeros = tensors["scales"].T.contiguous(), tensors["zeros"].T.contiguous()
    return spec.tensor(pack_codes(codes), *stored_scales(scales, zeros, spec))


def matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    """x [M, in_features] times the weight, a custom operator, so that CUDA graphs and torch.compile take it."""
    from qbench.int4.kernels import _triton  # importing Triton takes a while, and needs it

    out: Tensor = _triton.w4a16(x, tensors["words"], tensors["scales"], tensors["zeros"], spec.group_columns)
    return out
