"""Peak memory of a call on a CPU, weights included.

    peak = bytes of the buffers that hold the weights + growth of live allocations during the call

as the C library's allocator counts them (`mallinfo2` of glibc): llama.cpp takes its cache, its buffers to compute with
and its logits from there when a context is made, and keeps them. It is looked at after every forward.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _mallinfo2() -> Callable[[], Any] | None:
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # another C library, or glibc before 2.33
        return None
    found.restype = _Mallinfo2
    return found


_INFO = _mallinfo2()

COUNTS = _INFO is not None
"""Whether allocations can be counted here."""


def live_bytes() -> int:
    """Bytes that this process has allocated and not freed, those of mapped blocks included."""
    assert _INFO is not None, "COUNTS"
    info = _INFO()
    return int(info.uordblks + info.hblkhd)


class Watch:
    """The most that was live at once, of the moments that it looks."""

    def __init__(self) -> None:
        self._start: int | None = None
        self._most = 0

    def look(self) -> None:
        """Note what is live now, if a call is being watched."""
        if self._start is not None:
            self._most = max(self._most, live_bytes())

    def growth(self, call: Callable[[], object]) -> int:
        """Bytes that were live at the worst of these moments, beyond those at the start."""
        self._start = self._most = live_bytes()
        try:
            call()
            return self._most - self._start
        finally:
            self._start = None
