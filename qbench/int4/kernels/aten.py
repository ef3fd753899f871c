"""torch's own weight-only products for CPUs: int4pack for 4 bits, int8pack for symmetric 8 bits with one scale a row.

Where the project's C kernel was not built, this is the next best thing. int4pack's layout differs between CPUs and
versions of torch, so it is made when a model is loaded and never written to a file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.int4.kernels.base import Tensors, WeightSpec, full_scales, stored_scales
from qbench.int4.pack import pack as pack_codes
from qbench.int4.pack import unpack as unpack_codes
from qbench.int4.quantizer import QuantizedTensor

name = "aten"

UNPACK_ROWS = 1024


def refusal(spec: WeightSpec, device: torch.device) -> str | None:
    """Other devices, bits, groups and widths than torch has kernels for."""
    if device.type != "cpu":
        return f"is for CPUs, not {device.type}"
    if spec.bits == 8:
        one_a_row = spec.symmetric and spec.groups == 1
        return None if one_a_row else "multiplies 8 bits only where they are symmetric with one scale a row"
    if spec.bits != 4:
        return f"multiplies 4 and 8 bits, not {spec.bits}"
    if spec.group_columns not in (32, 64, 128, 256) or spec.in_features % spec.group_columns:
        return f"needs whole groups of 32, 64, 128 or 256, not {spec.group_columns} in {spec.in_features}"
    return None if spec.out_features % 16 == 0 else f"needs a multiple of 16 rows, not {spec.out_features}"


def pack(q: QuantizedTensor) -> dict[str, Tensor]:
    """int4pack's codes and [groups, out_features, 2] of scales and zeros; int8pack's int8 codes and scales."""
    scales, zeros = full_scales(q)
    if q.bits == 8:
        return {"qweight": (q.qweight ^ 128).view(torch.int8), "scales": scales[:, 0].contiguous()}
    codes = unpack_codes(q.qweight, q.shape[1], dtype=torch.int32)
    both = torch.stack((scales, zeros), dim=-1).transpose(0, 1).contiguous()
    return {"qweight": torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), "scales_and_zeros": both}


def unpack(tensors: Tensors, spec: WeightSpec) -> QuantizedTensor:
    """The inverse of `pack`. int4pack's own layout is private: its codes come from products with unit vectors."""
    if spec.bits == 8:
        codes = tensors["qweight"].view(torch.uint8) ^ 128  # the inverse of subtracting 128
        return spec.tensor(codes, *stored_scales(tensors["scales"][:, None], tensors["scales"][:, None], spec))
    both = tensors["scales_and_zeros"]
    ones = torch.ones_like(both, dtype=torch.bfloat16)
    ones[..., 1] = 0
    columns = []
    for start in range(0, spec.in_features, UNPACK_ROWS):
        x = torch.zeros(min(UNPACK_ROWS, spec.in_features - start), spec.in_features, dtype=torch.bfloat16)
        x[:, start:].fill_diagonal_(1)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(x, tensors["qweight"], spec.group_columns, ones)
        columns.append((product + 8).to(torch.uint8).T)
    scales, zeros = both.transpose(0, 1).unbind(-1)
    codes = pack_codes(torch.cat(columns, dim=1))
    return spec.tensor(codes, *stored_scales(scales.contiguous(), zeros.contiguous(), spec))


def matmul(x: Tensor, tensors: Tensors, spec: WeightSpec) -> Tensor:
    """x [M, in_features] times the weight; torch dequantizes and accumulates inside."""
    if spec.bits == 8:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x, tensors["qweight"], tensors["scales"].to(x.dtype))
        return out
    both = tensors["scales_and_zeros"].to(x.dtype)
    out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, tensors["qweight"], spec.group_columns, both)
    return out
