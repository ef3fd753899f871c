"""Our INT4 linear against torch's plain linears and its 4-bit kernel, as ratios measured in one run on this CPU.

    python benchmarks/int4_linear.py [--most-rows N] [--out FOLDER]

Activations of the 4-bit kernels are bfloat16, then float32, for which torch's kernel has no fast code and is left out;
each plain linear gets them in its own dtype. Weights are rotated through several copies, so that every call reads them
from memory, as a model's forward does. All of them, and a plain sum over memory that tells how fast it can be read, are
timed in turn, and ratios are taken within each turn, so that a machine whose speed drifts still compares. A row has the
median of the turns and, of each ratio, its quartiles.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import record
import timing
import torch
import typer
from rich.progress import track
from torch import Tensor, nn

from qbench.int4 import QuantLinear, native
from qbench.int4.kernels import WeightSpec, choose
from qbench.int4.quantizer import QuantizedTensor

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))
"""(out_features, in_features) of Llama-3-8B."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
GROUP_SIZE = 128
COLD_BYTES = 1 << 28
"""Weights of each kind are more than this together."""

Forward = Callable[[Tensor], Tensor]


def random_weight(out_features: int, in_features: int) -> QuantizedTensor:
    """Codes at random: the speed of a product does not depend on them."""
    groups = in_features // GROUP_SIZE
    return QuantizedTensor(
        torch.randint(256, (out_features, in_features // 2), dtype=torch.uint8),
        torch.rand(out_features, groups).bfloat16(),
        torch.rand(out_features, groups).bfloat16(),
        torch.Size((out_features, in_features)),
        4,
        GROUP_SIZE,
    )


def forwards(out_features: int, in_features: int) -> dict[str, Iterator[Forward]]:
    """For each kernel, an endless rotation of layers that are too many for the cache."""
    weight = random_weight(out_features, in_features)
    copies = COLD_BYTES // weight.nbytes + 1
    kernels = {"int4": choose(WeightSpec.of(weight), torch.device("cpu")).name, "aten": "aten"}
    layers: dict[str, Iterator[Forward]] = {
        name: itertools.cycle([QuantLinear(weight, kernel=kernel) for _ in range(copies)])
        for name, kernel in kernels.items()
    }
    for dtype in (torch.bfloat16, torch.float32):
        wide = [_plain(out_features, in_features, dtype) for _ in range(copies // 3 + 1)]
        layers[str(dtype).removeprefix("torch.")] = itertools.cycle(wide)
    return layers


def _plain(out_features: int, in_features: int, dtype: torch.dtype) -> Forward:
    linear = nn.Linear(in_features, out_features, bias=False, dtype=dtype)
    return lambda x: linear(x.to(dtype))


@torch.inference_mode()
def seconds(forward: Callable[[Any], Any], x: Tensor) -> float:
    """Of one call."""
    start = time.perf_counter()
    forward(x)
    return time.perf_counter() - start


def turn(kernels: dict[str, Iterator[Forward]], x: Tensor, memory: Tensor, calls: int) -> dict[str, float]:
    """Seconds of a call of each kernel, the best of a few in a row, and bytes a second of a sum over `memory`."""
    times = {}
    for name, layers in kernels.items():
        seconds(next(layers), x)  # the threads and the clock of the core get used to it
        times[name] = min(seconds(next(layers), x) for _ in range(calls))
    times["read"] = memory.nbytes / seconds(torch.sum, memory)
    return times


def row(x: Tensor, shape: tuple[int, int], kernels: dict[str, Iterator[Forward]], memory: Tensor) -> dict[str, Any]:
    """One shape, and activations of one size and dtype."""
    batch = x.shape[0]
    if x.dtype == torch.float32:
        kernels = {name: layers for name, layers in kernels.items() if name != "aten"}
    calls, turns = (5, 11) if batch < 128 else (2, 5)
    taken = [turn(kernels, x, memory, calls) for _ in range(turns)]
    layer = next(kernels["int4"])
    assert isinstance(layer, QuantLinear)
    weight_bytes = sum(tensor.nbytes for tensor in layer.packed().values())
    found: dict[str, Any] = {
        "out_features": shape[0],
        "in_features": shape[1],
        "batch": batch,
        "activations": str(x.dtype).removeprefix("torch."),
        "kernel": layer.kernel_name,
        "instructions": native.LEVELS[native.level()] if layer.kernel_name == "cpu" else None,
        **{f"{name}_s": float(np.median([t[name] for t in taken])) for name in kernels},
    }
    for name in kernels.keys() - {"int4"}:
        found |= timing.ratio([t["int4"] for t in taken], [t[name] for t in taken], name)
    found["read_bytes_per_s"] = float(np.median([t["read"] for t in taken]))
    found["of_read_bandwidth"] = float(np.median([weight_bytes / t["int4"] / t["read"] for t in taken]))
    return found


def main(
    out: Annotated[Path | None, typer.Option(help="folder for the table as CSV, with run.json")] = None,
    most_rows: Annotated[int, typer.Option(help="of activations; many take minutes where bfloat16 is slow")] = 2048,
) -> None:
    """Time every shape, dtype of activations and batch size."""
    memory = torch.ones(COLD_BYTES // 8, dtype=torch.int64)
    rows = []
    for shape in SHAPES:
        kernels = forwards(*shape)
        inputs = [
            torch.randn(batch, shape[1], dtype=dtype)
            for dtype in (torch.bfloat16, torch.float32)
            for batch in BATCHES
            if batch <= most_rows
        ]
        rows += [row(x, shape, kernels, memory) for x in track(inputs, f"{shape}", transient=True)]
    record.keep(out, {"int4_linear": rows}, script="int4_linear")


if __name__ == "__main__":
    typer.run(main)
