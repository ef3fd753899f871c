"""Time of a call, on a GPU without what launching costs: the calls are captured as one CUDA graph and replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Calls = Sequence[Callable[[], object]]
"""Made in turn. Their weights together are too many for the cache, so that each is read from memory."""


def prepared(calls: Calls, device: torch.device) -> Callable[[], float]:
    """What makes all calls and gives the mean seconds of one."""
    with torch.inference_mode():
        for call in calls:  # what is compiled or repacked at the first call is not timed
            call()
        return _graph(calls) if device.type == "cuda" else lambda: _host_seconds(calls)


def _graph(calls: Calls) -> Callable[[], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return lambda: _device_seconds(graph) / len(calls)


def _device_seconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


@torch.inference_mode()
def _host_seconds(calls: Calls) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def in_turns(timers: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds by name, `turns` of each, taken one after another, so that a drifting machine still compares."""
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(turns):
        for name, timer in timers.items():
            taken[name].append(timer())
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float], name: str) -> dict[str, float]:
    """How many times faster we are, turn by turn: the median and the quartiles, as columns of a table."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    quantiles = {"": 0.5, "_q1": 0.25, "_q3": 0.75}
    return {f"vs_{name}{suffix}": float(np.quantile(ratios, at)) for suffix, at in quantiles.items()}
