"""The block sizes of the Triton kernels that are fastest on the GPU at hand."""

from __future__ import annotations

import itertools
import json
import time
from functools import partial
from pathlib import Path

import timing
import torch
from rich.console import Console
from torch import Tensor

from qbench.int4 import QuantizedTensor
from qbench.int4.kernels import kernel, tuning
from qbench.int4.kernels.tuning import BUCKETS, Config

SHAPES = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336))
"""(out_features, in_features) of Llama-3-8B, siblings joined."""
GROUP_SIZE = 128
COLD_BYTES = 1 << 28
TOO_SLOW = 3.0
"""A candidate that takes so many times the best in its first replay is not timed again."""


def candidates(rows: int) -> list[Config]:
    """What is tried for a number of rows, the rule of thumb's neighbours first."""
    block_m = max(16, rows)
    warps, stages = ((1, 2, 4), (2, 4)) if rows <= 4 else ((4, 8), (2, 3, 4, 5))
    sizes = itertools.product((64, 32, 128), (8, 4, 16, 2, 1, 32), warps, stages)
    return [Config(block_m, *rest) for rest in sizes]


def packed(shape: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """A weight of random codes in the kernel's layout."""
    rows, columns = shape
    scales = torch.rand(rows, columns // GROUP_SIZE, device=device).half()
    codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device=device)
    return kernel("triton").pack(QuantizedTensor(codes, scales, scales, torch.Size(shape), 4, GROUP_SIZE))


def fastest(rows: int, weights: list[dict[str, Tensor]], deadline: float) -> tuple[Config, float] | None:
    """The best candidate and its seconds a call; None if there was no time to try one."""
    from qbench.int4.kernels import _triton

    device = weights[0]["words"].device
    x = torch.randn(rows, weights[0]["words"].shape[0] * _triton.BLOCK, device=device).half()
    best: tuple[Config, float] | None = None
    for config in candidates(rows):
        if time.monotonic() > deadline:
            break
        calls = [partial(_triton.product, x, w["words"], w["scales"], w["zeros"], GROUP_SIZE, config) for w in weights]
        try:
            timer = timing.prepared(calls, device)
        except Exception:  # more shared memory or registers than there are
            continue
        seconds = timer()
        if best is not None and seconds > TOO_SLOW * best[1]:
            continue
        seconds = min(seconds, timer(), timer())
        if best is None or seconds < best[1]:
            best = config, seconds
    return best


def tune(device: torch.device, seconds: float) -> tuple[Path, list[dict[str, object]]]:
    """Write the table of this device into the package; returns its path, and the best of each shape and bucket.

    Args:
        seconds: for all of them together.
    """
    console = Console()
    table: dict[str, dict[str, list[int]]] = {}
    taken: list[dict[str, object]] = []
    cases = list(itertools.product(SHAPES, BUCKETS))
    start = time.monotonic()
    for i, (shape, rows) in enumerate(cases):
        weight = packed(shape, device)
        copies = COLD_BYTES // weight["words"].nbytes + 1
        weights = [weight, *({k: t.clone() for k, t in weight.items()} for _ in range(copies))]
        found = fastest(rows, weights, start + seconds * (i + 1) / len(cases))
        if found is not None:
            table.setdefault(f"{shape[0]}x{shape[1]}", {})[str(rows)] = list(found[0])
            taken.append({"shape": f"{shape[0]}x{shape[1]}", "rows": rows, "us": found[1] * 1e6, **found[0]._asdict()})
            console.print(f"{shape} batch {rows}: {found[1] * 1e6:.1f} µs with {found[0]}")
    tuning.TUNED.mkdir(exist_ok=True)
    path = tuning.TUNED / f"{tuning.device_file(device)}.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    tuning.tuned.cache_clear()
    return path, taken
