"""Group-wise integers that keep what a linear gives, rather than its weights: rounding with calibration activations.

A linear W reads x in the 16-bit model, and x' in the model whose linears before it are quantized. Over the tokens of a
text, the codes are to make

    mean |W x - W' x'|^2

small, which the moments H = mean(x' x'^T) and C = mean(x x'^T) tell without the tokens:

1. The real weight of the least error is V = W C H^-1: W, made up for what the linears before it have lost, as in GPTAQ
   (Li et al., 2025).
2. Scale and offset of every group of V by the search of `qbench.int4.fit`.
3. Codes column by column, those with the largest moments first. Each column's error is made up for by the columns that
   follow: GPTQ (Frantar et al., 2022, equations 2 and 3), with the factor of the inverse from their section 3.3.

The stored form is that of `qbench.int4.quantizer`. Both moments are damped by a part of H's mean diagonal, so that
directions which the text does not have keep their weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qbench.int4 import fit
from qbench.int4.fit import Rounding
from qbench.int4.pack import pack
from qbench.int4.quantizer import PER_TENSOR, QuantizedTensor, Search, check, group_columns

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: GPTQ's own."""
BLOCK = 128
"""Columns whose errors reach the columns behind them together."""


class Moments:
    """H and C of a linear's inputs, [in_features, in_features] in float32, summed as they come."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._inputs = torch.zeros(in_features, in_features, device=device)
        self._crossed = torch.zeros_like(self._inputs)
        self._count = 0

    def add(self, x: Tensor, quantized: Tensor) -> None:
        """Activations [..., in_features] of the same tokens in the 16-bit and in the quantized model."""
        rows, rows_quantized = (each.reshape(-1, each.shape[-1]).float() for each in (x, quantized))
        self._inputs.addmm_(rows_quantized.T, rows_quantized)
        self._crossed.addmm_(rows.T, rows_quantized)
        self._count += len(rows)

    def damped(self) -> tuple[Tensor, Tensor]:
        """(H, C); a column that was never anything but 0 has a moment of 1, and no say in the others."""
        inputs, crossed = self._inputs / max(1, self._count), self._crossed / max(1, self._count)
        added = torch.full_like(inputs.diagonal(), DAMPING) * inputs.diagonal().mean()
        added[inputs.diagonal() + added == 0] = 1
        inputs.diagonal().add_(added)
        crossed.diagonal().add_(added)
        return inputs, crossed


def quantize_calibrated(
    weight: Tensor,
    moments: Moments,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    search: Search = "mse",
    scale_dtype: torch.dtype | None = None,
    name: str = "weight",
) -> QuantizedTensor:
    """Quantize a weight [out_features, in_features] for the inputs that were seen, on its own device.

    Args:
        moments: of its inputs.
        bits, group_size, symmetric, search, scale_dtype, name: as `qbench.int4.quantizer.quantize` has them; a group
            is at most a row.

    Raises:
        ValueError: see `quantize`; or one scale for the whole tensor is asked for.
    """
    check(weight, bits, group_size, search, name)
    if group_size == PER_TENSOR:
        raise ValueError(f"{name}: calibrated codes need groups of a row or less; set group_size")
    rounding = Rounding(bits, symmetric, scale_dtype or (weight.dtype if weight.itemsize == 2 else torch.bfloat16))
    inputs, crossed = moments.damped()
    factor = torch.linalg.cholesky(inputs)
    best = torch.cholesky_solve((weight.float() @ crossed).T, factor).T.contiguous()
    size = group_columns(weight.shape[1], group_size)
    fitted = [fit.fit(part.contiguous(), rounding, search)[1:] for part in torch.split(best, size, dim=1)]
    scales, zeros = (torch.stack(values, dim=1) for values in zip(*fitted, strict=True))
    if not (torch.isfinite(scales).all() and torch.isfinite(zeros).all()):
        raise ValueError(f"{name}: its range does not fit {rounding.scale_dtype} scales")
    order = inputs.diagonal().argsort(descending=True)
    group = order // size
    of_columns = _Grid(scales.float()[:, group], zeros.float()[:, group], rounding)
    codes = torch.empty_like(best)
    codes[:, order] = _codes(best[:, order], inputs[order][:, order], of_columns)
    packed = pack((codes + rounding.middle).to(torch.uint8), bits)
    return QuantizedTensor(packed, scales, None if symmetric else zeros, weight.shape, bits, group_size)


class _Grid(NamedTuple):
    """The values that the columns of a weight may take."""

    scales: Tensor
    """float32 [out_features, in_features], as `zeros`."""
    zeros: Tensor
    rounding: Rounding


def _codes(left: Tensor, inputs: Tensor, grid: _Grid) -> Tensor:
    """Codes less the middle one, column by column; `left` [out, in] and the rest are in the order of columns."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inputs))
    factor = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, left.shape[1]))
        part, inner = left[:, block], factor[block, block]
        errors = torch.empty_like(part)
        for j in range(part.shape[1]):
            scale, zero = grid.scales[:, start + j], grid.zeros[:, start + j]
            code = grid.rounding.codes(part[:, j, None], scale, zero)[:, 0]
            codes[:, start + j] = code
            errors[:, j] = (part[:, j] - (scale * code + zero)) / inner[j, j]
            part[:, j:].addr_(errors[:, j], inner[j, j:], alpha=-1)
        left[:, block.stop :].addmm_(errors, factor[block, block.stop :], alpha=-1)
    return codes
