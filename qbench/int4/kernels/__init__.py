"""The kernels that multiply by quantized weights, and the choice among them."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

import torch

from qbench.int4.kernels.base import Kernel, Tensors, WeightSpec

KERNELS = ("cuda", "triton", "cpu", "aten", "reference")
"""Modules of this package, the preferred first. Each is a `Kernel`."""

__all__ = ["KERNELS", "Kernel", "Tensors", "WeightSpec", "choose", "kernel"]


@cache
def kernel(name: str) -> Kernel:
    """A kernel by its module's name.

    Raises:
        ImportError: a library that it needs is not installed.
    """
    return cast(Kernel, importlib.import_module(f"{__name__}.{name}"))


def choose(spec: WeightSpec, device: torch.device, name: str = "auto") -> Kernel:
    """The first kernel that takes such a weight on such a device, or the one asked for.

    Raises:
        ValueError: the one asked for cannot serve here; the message says why.
    """
    if name != "auto" and name not in KERNELS:
        raise ValueError(f"kernel must be auto or one of {', '.join(KERNELS)}, not {name!r}")
    for candidate in KERNELS if name == "auto" else (name,):
        refusal = _refusal(candidate, spec, device)
        if refusal is None:
            return kernel(candidate)
        if candidate == name:
            raise ValueError(f"kernel {name} {refusal}")
    raise AssertionError("the reference kernel takes everything")


def _refusal(name: str, spec: WeightSpec, device: torch.device) -> str | None:
    try:
        return kernel(name).refusal(spec, device)
    except ImportError as error:
        return f"cannot be imported: {error}"
