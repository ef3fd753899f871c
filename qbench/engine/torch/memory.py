"""Peak memory of a call, weights included.

CUDA: `torch.cuda.max_memory_allocated()` after the call, its statistics reset before, on each GPU that holds weights.
CPU: the same meaning,

    peak = bytes of the weights + peak of live allocations during the call

as torch's own allocator reports them, so that a small model is not lost in the noise of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qbench.compat.torch import allocations
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
    live = peak = 0
    for size in allocations(profile):
        live += size
        peak = max(peak, live)
    return peak
