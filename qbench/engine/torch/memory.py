"""Peak memory of a call, weights included.

CUDA: `torch.cuda.max_memory_allocated()` after the call, its statistics reset before, on each GPU that holds weights.
CPU: the same meaning,

    peak = bytes of the weights + peak of live allocations during the call

as torch's own allocator reports them, so that a small model is not lost in the noise of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent

from qbench.engine.torch.loaded import LoadedModel


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
