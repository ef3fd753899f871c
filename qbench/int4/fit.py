"""Scale and offset of a group: from its range, or from a search for the least weighted squared error.

The search needs no calibration data. It tries a grid of ranges, each a part of the group's own, and after each
rounding solves the weighted least-squares problem of (s, z) for the codes it gave, in closed form:

    s = cov(q, w) / var(q)        z = mean(w) - s mean(q)        with weights v = rms(group) + |w|

then rounds and solves again from the best. Of all pairs it met, as they are after rounding to 16 bits, it keeps the one
of the least error; the plain range is among them, and stays where a group's unweighted error would grow. Weights make
large values count, which plain least squares clips: on whole rows, where there is most to clip, it is the better
squared error and the worse model.

Searching for the range with such weights goes back to llama.cpp's `make_qkx2_quants` (ggml-quants.c), alternating codes
and offsets to HQQ (Badri and Shaji, 2023). On CPUs the same is done in C (csrc/fit.c), several times as fast; its sums
are rounded in another order, so that now and then a group ends at another pair of nearly the same error.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.int4 import native

PARTS = tuple(0.7 + 0.3 * i / 7 for i in range(8))
PLACES = (0.0, -0.5, 0.5)
STARTS = tuple((part, place) for part in PARTS for place in (PLACES if part < 1 else (0.0,)))
"""(part, place): the search starts from such parts of a group's range, in its middle (0) or towards its lower (-1) or
upper (1) end. On Gaussian groups of 128, the middle alone gives 4 % more unweighted error, five places 0.2 %
less, and a grid of 7,200 ranges 1 % less."""
REFITS = 4
"""Rounds of codes and least squares from the best of them."""


TINY = 1e-30
"""Instead of a sum of weights that is 0: a group of zeros."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a group is stored."""

    bits: int
    symmetric: bool
    scale_dtype: torch.dtype

    @property
    def middle(self) -> int:
        """The code that stands for z."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> float:
        """Half of the steps between the first code and the last."""
        return self.middle - 0.5

    def stored(self, values: Tensor) -> Tensor:
        """Values as they are after their rounding to the scales' dtype."""
        return values.to(self.scale_dtype).to(values.dtype)

    def plain(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """(s, z) that cover the range of each group, [n, size] -> [n], [n], both as they are stored.

        A symmetric scale may be negative: there is one negative code more than positive ones, and the sign decides on
        which side of 0 it is.
        """
        low, high = groups.aminmax(dim=-1)
        top = self.middle - 1
        if not self.symmetric:
            scales = self.stored((high - low) / (self.middle + top))
            return scales, self.stored(low + self.middle * scales)
        positive = torch.maximum(high / top, -low / self.middle)
        negative = torch.maximum(high / self.middle, -low / top)
        scales = self.stored(torch.where(negative < positive, -negative, positive))
        return scales, torch.zeros_like(scales)

    def codes(self, groups: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest codes less the middle one, [n, size] in float32; 0 where the scale is 0."""
        inverse = torch.where(scales == 0, 0.0, 1 / scales)
        centred = groups - zeros[:, None]
        return centred.mul_(inverse[:, None]).round_().clamp_(-self.middle, self.middle - 1)


def fit(groups: Tensor, rounding: Rounding, search: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [n, size], scales and zeros [n] in the scales' dtype, for float32 groups [n, size]."""
    scales, zeros = rounding.plain(groups)
    if search == "mse":
        in_c = groups.device.type == "cpu" and native.library() is not None
        scales, zeros = (_searched_in_c if in_c else _searched)(groups, rounding, scales, zeros)
    codes = (rounding.codes(groups, scales, zeros) + rounding.middle).to(torch.uint8)
    return codes, scales.to(rounding.scale_dtype), zeros.to(rounding.scale_dtype)


def _searched_in_c(groups: Tensor, rounding: Rounding, plain_s: Tensor, plain_z: Tensor) -> tuple[Tensor, Tensor]:
    """The best (s, z) of the search, by the compiled library."""
    groups = groups.contiguous()
    best_s, best_z = torch.empty_like(plain_s), torch.empty_like(plain_z)
    native.loaded().qint4_fit(
        native.level(),
        groups.data_ptr(),
        *groups.shape,
        rounding.bits,
        rounding.symmetric,
        rounding.scale_dtype == torch.float16,
        (ctypes.c_float * (2 * len(STARTS)))(*(value for start in STARTS for value in start)),
        len(STARTS),
        REFITS,
        plain_s.contiguous().data_ptr(),
        plain_z.contiguous().data_ptr(),
        best_s.data_ptr(),
        best_z.data_ptr(),
        torch.get_num_threads(),
    )
    return best_s, best_z


def _searched(groups: Tensor, rounding: Rounding, plain_s: Tensor, plain_z: Tensor) -> tuple[Tensor, Tensor]:
    """The best (s, z) of the search."""
    best = _Best(groups, rounding)
    for part, place in STARTS:
        scales = rounding.stored(plain_s * part)
        if not rounding.symmetric:
            # The middle of the codes is half a step below z.
            middle = plain_z - plain_s / 2 + plain_s * rounding.top * (1 - part) * place
            best.try_and_refit(scales, rounding.stored(middle + scales / 2))
        elif place == 0:
            best.try_and_refit(scales, plain_z)
    for _ in range(REFITS):
        best.try_and_refit(best.scales, best.zeros)
    # Also where sums lost the digits that decide.
    worse = _error(groups, rounding, best.scales, best.zeros) > _error(groups, rounding, plain_s, plain_z)
    return torch.where(worse, plain_s, best.scales), torch.where(worse, plain_z, best.zeros)


def _error(groups: Tensor, rounding: Rounding, scales: Tensor, zeros: Tensor) -> Tensor:
    """Squared error of each group, [n]."""
    codes = rounding.codes(groups, scales, zeros)
    return codes.mul_(scales[:, None]).add_(zeros[:, None]).sub_(groups).square_().sum(-1)


class _Best:
    """The best (s, z) so far of every group."""

    def __init__(self, groups: Tensor, rounding: Rounding) -> None:
        self._groups, self._rounding = groups, rounding
        self._v = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
        self._sum_v = self._v.sum(-1)
        weighted = self._v * groups
        self._sum = weighted.sum(-1)
        self._squares = weighted.mul_(groups).sum(-1)
        self._errors = torch.full_like(self._sum, torch.inf)
        self.scales = torch.zeros_like(self._sum)
        self.zeros = torch.zeros_like(self._sum)

    def try_and_refit(self, scales: Tensor, zeros: Tensor) -> None:
        """Weigh (s, z), and the least-squares solution for the codes that they give."""
        codes = self._rounding.codes(self._groups, scales, zeros)
        weighted = self._v * codes
        q, qw = weighted.sum(-1), (weighted * self._groups).sum(-1)
        qq = weighted.mul_(codes).sum(-1)
        self._compare(scales, zeros, q, qq, qw)
        if self._rounding.symmetric:
            scales = self._rounding.stored(torch.where(qq > 0, qw / qq, scales))
        else:
            variance = self._sum_v * qq - q * q
            slope = (self._sum_v * qw - q * self._sum) / variance
            scales = self._rounding.stored(torch.where(variance > 0, slope, scales))
            zeros = self._rounding.stored((self._sum - scales * q) / self._sum_v.clamp(min=TINY))
        self._compare(scales, zeros, q, qq, qw)

    def _compare(self, s: Tensor, z: Tensor, q: Tensor, qq: Tensor, qw: Tensor) -> None:
        """Keep (s, z) where the sum of v (w - s q - z)^2 is less than the least so far."""
        errors = self._squares - 2 * (s * qw + z * self._sum) + s * s * qq + z * (2 * s * q + self._sum_v * z)
        better = errors < self._errors
        self._errors = torch.where(better, errors, self._errors)
        self.scales = torch.where(better, s, self.scales)
        self.zeros = torch.where(better, z, self.zeros)
