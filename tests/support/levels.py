"""Instruction sets of the INT4 kernels."""

from qbench.int4 import native


def levels() -> list[str]:
    """Those that this CPU has, whatever QBENCH_CPU_LEVEL says; none where the library was not compiled."""
    lib = native.library()
    return [] if lib is None else list(native.LEVELS[: lib.qint4_level() + 1])
