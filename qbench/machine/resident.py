"""The resident set of this process at its highest."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


class ResidentPeak:
    """High-water resident set of this process, relative to its resident set when the watch began.

    Linux lets a process reset its own high-water mark (`/proc/self/clear_refs`, proc(5)); elsewhere the current
    resident set stands in, which misses what was freed again.
    """

    def __init__(self) -> None:
        self._start = psutil.Process().memory_info().rss
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far; the start stays what it was."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The most bytes this process held above its start, since the last restart; never negative."""
        return max(0, _high_water() - self._start)


def _high_water() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
