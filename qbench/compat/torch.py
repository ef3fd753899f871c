"""torch's profiler keeps a tree of events, allocations of the CPU among them, that has no public reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent

if TYPE_CHECKING:
    import torch


def allocations(profile: torch.profiler.profile) -> list[int]:
    """Signed sizes of allocations and frees on the CPU, in bytes, in the order of time.

    `profile` has ended, and was made with `profile_memory`.
    """
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    sizes: list[tuple[int, int]] = []
    stack: list[_ProfilerEvent] = list(profile.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        fields = event.extra_fields
        if isinstance(fields, _ExtraFields_Allocation) and fields.device.type == "cpu":
            sizes.append((event.start_time_ns, fields.alloc_size))
    return [size for _, size in sorted(sizes, key=lambda pair: pair[0])]
