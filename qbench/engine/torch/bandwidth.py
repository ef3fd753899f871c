"""How fast a GPU moves bytes of its own memory; of a CPU, `qbench.machine.bandwidth` measures it without torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

import torch

BUFFER_BYTES = (256 << 20, 1 << 30)
"""Least and most that is copied: a small buffer would stay in the card's L2 cache, of 50 MB on an H100."""

COPIES = 20
WARM_UP_S = 0.2
"""An idle card raises its clocks only under load."""


def copy_bytes_per_s(device: torch.device) -> float | None:
    """Bytes a second, those read and those written, of copies within a GPU's memory; None where there is no room.

    Nothing stays allocated, and the peak statistics begin again: what is loaded later has them for itself.
    """
    size = copied_bytes(torch.cuda.mem_get_info(device)[0])
    if size is None:
        return None
    try:
        return rate(size, _copy_s(device, size))
    except torch.OutOfMemoryError:  # Another process was faster.
        return None
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def copied_bytes(free_bytes: int) -> int | None:
    """Bytes of the buffer to copy: with its copy, half of the free memory at most; None where too little is free."""
    least, most = BUFFER_BYTES
    size = min(free_bytes // 4, most)
    return size if size >= least else None


def rate(size: int, seconds: Sequence[float]) -> float:
    """2 × size ÷ median of the times of a copy, which reads and writes each of its bytes."""
    return 2 * size / statistics.median(seconds)


def _copy_s(device: torch.device, size: int) -> list[float]:
    """Seconds of each of `COPIES` copies of `size` bytes, by events on the device, which wait for nothing between."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        target.copy_(source)
        torch.cuda.synchronize(device)
    stream = torch.cuda.current_stream(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(COPIES + 1)]  # type: ignore[no-untyped-call]
    marks[0].record(stream)
    for mark in marks[1:]:
        target.copy_(source)
        mark.record(stream)
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]
