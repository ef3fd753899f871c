"""Instruction sets of the INT4 kernels, and how exact products are there."""

import torch

from qbench.int4 import native


def levels() -> list[str]:
    """Those that this CPU has, whatever QBENCH_CPU_LEVEL says; none where the library was not compiled."""
    lib = native.library()
    return [] if lib is None else list(native.LEVELS[: lib.qint4_level() + 1])


def tolerance(dtype: torch.dtype, kernel: str = "cpu") -> float:
    """Relative L2 error of a product: the rounding of its results, and of what float32 activations lose.

    From AVX2 on, our kernel multiplies 16-bit integers, which round a float32 by at most 2^-15 of the largest of its
    segment.
    """
    if dtype != torch.float32:
        return {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    integers = kernel == "cpu" and native.library() is not None and native.LEVELS[native.level()] != "generic"
    return 2e-4 if integers else 1e-6
