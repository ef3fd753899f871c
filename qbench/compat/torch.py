"""torch: its profiler keeps a tree of events, allocations of the CPU among them, that has no public reader; and tensors
that are made of others say so to its compiler alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors with bytes of their own that `tensor` is made of: itself, or codes and scales of a subclass.

    A subclass without them, such as torchao's, has no storage: it only looks like a tensor of its shape and dtype.
    """
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_tensors(getattr(tensor, name))
