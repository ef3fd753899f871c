"""Energy by counters of the hardware, read before and after what is timed. Nothing is estimated.

- `nvml`: NVML's total energy of a board since its driver was loaded, in millijoules (Volta and later).
- `rapl`: the kernel's powercap tree for Intel and AMD processors, the domain of each package with all of its cores and
  caches, without memory. The counter of a package wraps around at `max_energy_range_uj`. Since Linux 5.10 only root may
  read it, because it gives secrets of other processes away (CVE-2020-8694).

A counter moves in steps: NVML's every 25 to 100 ms, depending on the board (Z. Yang, K. Adamek and W. Armour,
arXiv:2312.02741), a package's about every millisecond. What is shorter than ten steps has no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")

NVML_SHORTEST_S = 1.0
RAPL_SHORTEST_S = 0.01
"""Ten steps of a counter."""

MOST_PACKAGE_W = 500
"""The most that a package draws for long: with it a counter may have wrapped around twice over a long time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment."""

    at_s: float
    joules: tuple[float, ...]


class Meter:
    """Counters of one kind that are read together.

    Args:
        source: what the rows call it.
        read: the counters in joules; raises OSError or ValueError where they cannot be read any more.
        ranges: joules at which each counter begins again; empty if they do not.
        shortest_s: of what can be told.
    """

    def __init__(
        self, source: str, read: Callable[[], tuple[float, ...]], *, ranges: Sequence[float] = (), shortest_s: float
    ) -> None:
        self.source = source
        self._read, self._ranges, self._shortest_s = read, tuple(ranges), shortest_s

    def read(self) -> Reading | None:
        """The counters now; None if they cannot be read. Takes a fraction of a millisecond."""
        try:
            return Reading(time.perf_counter(), self._read())
        except (OSError, ValueError):
            return None

    def joules(self, before: Reading | None, after: Reading | None) -> float | None:
        """Spent between two readings, by all counters; None where they do not tell."""
        if before is None or after is None:
            return None
        seconds = after.at_s - before.at_s
        if seconds < self._shortest_s or any(seconds * MOST_PACKAGE_W > one for one in self._ranges):
            return None
        spent = [last - first for first, last in zip(before.joules, after.joules, strict=True)]
        if self._ranges:
            spent = [one + (whole if one < 0 else 0) for one, whole in zip(spent, self._ranges, strict=True)]
        return sum(spent) if min(spent) > 0 else None


def of_packages(root: Path = POWERCAP) -> Meter | None:
    """The packages of all processors; None where the kernel does not show their counters, or not to us."""
    try:
        packages = [one for one in sorted(root.glob("intel-rapl:*")) if _text(one / "name").startswith("package")]
        ranges = [int(_text(one / "max_energy_range_uj")) / 1e6 for one in packages]
        meter = Meter(
            "rapl",
            lambda: tuple(int(_text(one / "energy_uj")) / 1e6 for one in packages),
            ranges=ranges,
            shortest_s=RAPL_SHORTEST_S,
        )
    except (OSError, ValueError):
        return None
    return meter if packages and meter.read() else None


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def of_gpus(uuids: Sequence[str]) -> Meter | None:
    """The boards with these UUIDs (`GPU-…`); None where NVML or one of their counters cannot be read."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except pynvml.NVMLError:
        return None
    meter = Meter("nvml", lambda: _boards(pynvml, handles), shortest_s=NVML_SHORTEST_S)
    return meter if handles and meter.read() else None


def _boards(nvml: Any, handles: Sequence[Any]) -> tuple[float, ...]:
    """Joules of each board.

    Raises:
        OSError: a board does not tell.
    """
    try:
        return tuple(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles)
    except nvml.NVMLError as error:
        raise OSError(str(error)) from error
