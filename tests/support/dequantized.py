"""The weights that the codes of AWQ's and GPTQ's checkpoints stand for, in float64, by the formats' own definitions."""

from __future__ import annotations

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output of AutoAWQ's GEMM format that lies in each nibble of a word, from the lowest."""


def state_dict(stored: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """A model's tensors in float64, weights [out, in]: what their codes stand for where they are quantized."""
    weight = {"awq": awq, "gptq": gptq}[method]
    linears = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    parts = {f"{name}.{part}" for name in linears for part in ("qweight", "qzeros", "scales", "g_idx")}
    plain = {name: tensor.double() for name, tensor in stored.items() if name not in parts}
    return plain | {f"{name}.weight": weight(stored, name).T for name in linears}


def nibbles(words: Tensor) -> Tensor:
    """int64 [..., n, 8] of int32 [..., n], the lowest first."""
    return words.long()[..., None] >> torch.arange(0, 32, 4) & 15


def gptq(stored: dict[str, Tensor], name: str) -> Tensor:
    """[in, out]: words hold eight inputs of an output, zeros are stored less one."""
    codes = nibbles(stored[f"{name}.qweight"]).transpose(1, 2).flatten(0, 1)
    zeros = nibbles(stored[f"{name}.qzeros"]).flatten(1) + 1
    group = stored[f"{name}.g_idx"].long()
    return (codes - zeros[group]) * stored[f"{name}.scales"].double()[group]


def awq(stored: dict[str, Tensor], name: str) -> Tensor:
    """[in, out]: words hold eight outputs of an input, in AWQ_ORDER."""
    places = torch.tensor(AWQ_ORDER).argsort()
    codes, zeros = (nibbles(stored[f"{name}.{part}"])[..., places].flatten(1) for part in ("qweight", "qzeros"))
    size = len(codes) // len(zeros)
    zeros, scales = (part.repeat_interleave(size, 0) for part in (zeros, stored[f"{name}.scales"].double()))
    return (codes - zeros) * scales
