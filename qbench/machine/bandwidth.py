"""How fast a device reads its memory: as given, from its data sheet, or measured here in about a second."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qbench.errors import QbenchError

UNITS = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BINARY_UNITS = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}

SHEETS: dict[str, tuple[float, float | None]] = {
    "NVIDIA B200": (8000, 2250),
    "NVIDIA H200": (4800, 989),
    "NVIDIA H100 80GB HBM3": (3350, 989),
    "NVIDIA H100 NVL": (3900, 835),
    "NVIDIA H100 PCIe": (2000, 756),
    "NVIDIA A100-SXM4-80GB": (2039, 312),
    "NVIDIA A100 80GB PCIe": (1935, 312),
    "NVIDIA A100-SXM4-40GB": (1555, 312),
    "NVIDIA A100-PCIE-40GB": (1555, 312),
    "NVIDIA L40S": (864, 362),
    "NVIDIA L4": (300, 121),
    "NVIDIA A10": (600, 125),
    "NVIDIA A10G": (600, None),
    "Tesla T4": (320, 65),
    "Tesla V100-SXM2-16GB": (900, 125),
    "Tesla V100-SXM2-32GB": (900, 125),
    "NVIDIA RTX A6000": (768, None),
    "NVIDIA RTX 6000 Ada Generation": (960, None),
    "NVIDIA GeForce RTX 5090": (1792, None),
    "NVIDIA GeForce RTX 4090": (1008, None),
    "NVIDIA GeForce RTX 3090": (936, None),
}
"""By the driver's name: GB/s of memory, and TFLOP/s of dense 16-bit tensor products with float32 sums where its data
sheet says so; from NVIDIA's data sheets (nvidia.com/en-us/data-center, nvidia.com/en-us/geforce)."""

BUFFER_BYTES = (256 << 20, 2 << 30)
"""Least and most that is read: twice what the caches hold, where Linux tells it."""
CPUS = Path("/sys/devices/system/cpu")
SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Of a device's memory."""

    bytes_per_s: float
    source: str
    """Where the figure is from, in words."""
    flops: float | None = None
    """Dense 16-bit products, where they are known: a multiplication and an addition are two."""


def parse_rate(text: str) -> float:
    """Bytes a second of a text such as 1.5TB/s or 900 GB/s.

    Raises:
        QbenchError: it is none.
    """
    return _quantity(text.removesuffix("/s"), f"--bandwidth {text}", "1.5TB/s or 50GB/s")


def parse_bytes(text: str) -> int:
    """Bytes of a text such as 12GiB or 24 GB.

    Raises:
        QbenchError: it is none.
    """
    return int(_quantity(text, f"--memory {text}", "12GiB or 24GB"))


def of_gpu(name: str) -> Bandwidth | None:
    """What the data sheet of a GPU says; None for one that is not in `SHEETS`."""
    if name not in SHEETS:
        return None
    gigabytes, teraflops = SHEETS[name]
    return Bandwidth(gigabytes * 1e9, f"data sheet of {name}", None if teraflops is None else teraflops * 1e12)


@cache
def of_host() -> Bandwidth:
    """Read a buffer with every core, as often as `SECONDS` allow; the fastest pass counts."""
    import numpy as np

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = _buffer_bytes()
    parts = np.array_split(np.ones(size // 8, dtype=np.uint64), cores)
    times: list[float] = []
    with ThreadPoolExecutor(cores) as pool:
        deadline = time.perf_counter() + SECONDS
        while not times or time.perf_counter() < deadline:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            times.append(time.perf_counter() - start)
    return Bandwidth(size / min(times), f"measured here by reading {size >> 20} MiB with numpy")


def _buffer_bytes() -> int:
    levels: dict[str, dict[str, int]] = {}
    for folder in CPUS.glob("cpu[0-9]*/cache/index*"):
        with suppress(OSError, ValueError):
            level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            levels.setdefault(level, {})[shared] = int(size.removesuffix("K")) << 10
    least, most = BUFFER_BYTES
    return min(max(2 * sum(levels[max(levels)].values()) if levels else 0, least), most)


def _quantity(text: str, where: str, example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    scale = (UNITS | BINARY_UNITS).get(found[2]) if found else None
    if found is None or scale is None or float(found[1]) <= 0:
        raise QbenchError(f"{where}: expected a number with a unit, e.g. {example}")
    return float(found[1]) * scale
