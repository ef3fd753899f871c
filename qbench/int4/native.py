"""The C library of `qbench/int4/csrc`, compiled when the package is installed, if a compiler is there; and the one of
the system."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

LEVELS = ("generic", "avx2", "avx512", "avx512vnni", "amx")
"""Instruction sets in the order of the library's numbers; each includes the ones before it."""
INTEGERS_FROM = LEVELS.index("avx2")
"""The first that multiplies bfloat16 activations as they are, and weights of 8 bits."""


class Weight(ctypes.Structure):
    """`Weight` of qint4.h."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scales_are_fp16", ctypes.c_int),
        ("bits", ctypes.c_int),
        *((size, ctypes.c_ssize_t) for size in ("n", "k", "kp", "groups", "group_size")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built."""
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_qint4{suffix}"
        if path.is_file():
            try:
                return _declared(ctypes.CDLL(str(path)))
            except OSError:  # built for another machine
                continue
    return None


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the functions' arguments: else it would cut pointers and sizes to 32 bits."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
    weight = ctypes.POINTER(Weight)
    repack = (lib.qint4_pack, lib.qint4_unpack, lib.qint4_pack_3, lib.qint4_unpack_3)
    for function in repack:
        function.argtypes = [pointer, size, size, size, pointer]
    lib.qint4_matmul.argtypes = [weight, number, pointer, pointer, size, number, size, number]
    lib.qint4_dequantize.argtypes = [weight, number, size, size, number, pointer, number]
    lib.qint4_fit.argtypes = [
        *(number, pointer, size, size, number, number, number, pointer, number, number),
        *(pointer, pointer, pointer, pointer, number),
    ]
    for function in (*repack, lib.qint4_dequantize, lib.qint4_fit):
        function.restype = None
    return lib


@cache
def level() -> int:
    """Index into LEVELS of the best instruction set here; the variable QBENCH_CPU_LEVEL names a lesser one."""
    lib = library()
    assert lib is not None
    best: int = lib.qint4_level()
    asked = os.environ.get("QBENCH_CPU_LEVEL")
    if asked is None:
        return best
    if asked not in LEVELS[: best + 1]:
        raise ValueError(f"QBENCH_CPU_LEVEL={asked}: this CPU offers {', '.join(LEVELS[: best + 1])}")
    return LEVELS.index(asked)


def loaded() -> ctypes.CDLL:
    """The library, where it is known to be there."""
    lib = library()
    assert lib is not None, "it was not compiled"
    return lib


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies between blocks in use, which would count as ours."""
    with suppress(OSError, AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)
