"""Peak memory of the first forward of the loaded model, and what the whole process grew by.

CUDA: `torch.cuda.max_memory_allocated()` after the forward, its statistics reset before, summed over the GPUs that hold
weights. CPU: the same meaning,

    peak = bytes of the weights + peak of live allocations during the forward

as torch's own allocator reports them, so that a small model is not lost in the noise of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent

from qbench.backends.base import LoadedModel
from qbench.config import MemoryConfig
from qbench.engine.torch.decode import make_decoder
from qbench.measure.base import Context, random_prompt
from qbench.records.rows import MemoryRow


def measure(loaded: LoadedModel, config: MemoryConfig, context: Context) -> None:
    """Emit one `MemoryRow`."""
    context.progress("memory", 0, 1)
    prompt = random_prompt(loaded, config.batch_size, config.seq_len, context.seed)

    def forward() -> None:
        with torch.inference_mode():
            make_decoder(loaded.model, "eager", config.batch_size, config.seq_len).prefill(prompt)

    peaks = peak_bytes(loaded, forward)
    context.emit(
        MemoryRow(
            **context.identity,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            peak_memory_bytes=sum(peaks),
            peak_memory_per_device=";".join(map(str, peaks)) if loaded.device.type == "cuda" else None,
        )
    )
    context.progress("memory", 1, 1)


def peak_bytes(loaded: LoadedModel, call: Callable[[], object]) -> list[int]:
    """Bytes on each of the model's devices at the worst moment of `call` there, weights included."""
    if loaded.device.type == "cuda":
        return cuda_peak_bytes(loaded.devices, call)
    return [loaded.weight_bytes + peak_live_bytes(call)]


def cuda_peak_bytes(devices: Sequence[torch.device], call: Callable[[], object]) -> list[int]:
    """The most bytes that were allocated on each GPU at once while `call` ran."""
    for device in devices:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    call()
    for device in devices:
        torch.cuda.synchronize(device)
    return [torch.cuda.max_memory_allocated(device) for device in devices]


def peak_live_bytes(call: Callable[[], object]) -> int:
    """The most bytes that were live at once among those that `call` allocated through torch's CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    live = peak = 0
    for size in _allocations(profile.profiler.kineto_results.experimental_event_tree()):
        live += size
        peak = max(peak, live)
    return peak


def _allocations(roots: list[_ProfilerEvent]) -> list[int]:
    """Signed sizes of allocations and frees on the CPU, in the order of time."""
    sizes: list[tuple[int, int]] = []
    stack = list(roots)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        fields = event.extra_fields
        if isinstance(fields, _ExtraFields_Allocation) and fields.device.type == "cpu":
            sizes.append((event.start_time_ns, fields.alloc_size))
    return [size for _, size in sorted(sizes, key=lambda pair: pair[0])]


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
