"""Our INT4 linear against torch's bfloat16 linear and its 4-bit kernel, as ratios measured in one run on this CPU.

    python benchmarks/int4_linear.py [--out FILE.csv]

Weights are rotated through several copies, so that every call reads them from memory, as a model's forward does. The
three are timed in turn, and the ratio is taken within each turn, so that a machine whose speed drifts still compares.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from qbench.int4 import QuantLinear

SHAPES = ((4096, 4096), (14336, 4096))
"""(out_features, in_features) of Llama-3-8B."""
BATCHES = (1, 8, 32)
GROUP_SIZE = 128
COLD_BYTES = 1 << 29
TURNS = 7

Forward = Callable[[Tensor], Tensor]


def forwards(out_features: int, in_features: int) -> dict[str, Iterator[Forward]]:
    """For each kernel, an endless rotation of layers that are too many for the cache."""
    copies = max(2, COLD_BYTES // (out_features * in_features * 2))
    linears = [nn.Linear(in_features, out_features, bias=False, dtype=torch.bfloat16) for _ in range(copies)]
    return {
        "int4": itertools.cycle([QuantLinear.from_linear(linear, group_size=GROUP_SIZE) for linear in linears]),
        "bfloat16": itertools.cycle(linears),
        "aten_int4pack": itertools.cycle([_int4pack(linear) for linear in linears]),
    }


def _int4pack(linear: nn.Linear) -> Forward:
    """torch's weight-only 4-bit product on random codes: its speed does not depend on them."""
    codes = torch.randint(16, linear.weight.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(linear.in_features // GROUP_SIZE, linear.out_features, 2, dtype=torch.bfloat16)

    def forward(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP_SIZE, scales)
        return out

    return forward


@torch.inference_mode()
def seconds(forward: Forward, x: Tensor) -> float:
    """Of one call."""
    start = time.perf_counter()
    forward(x)
    return time.perf_counter() - start


def main(out: Annotated[Path | None, typer.Option(help="also write the rows as CSV")] = None) -> None:
    """Time every shape and batch size."""
    rows = []
    for shape in SHAPES:
        kernels = forwards(*shape)
        for batch in track(BATCHES, f"{shape[0]} x {shape[1]}", transient=True):
            x = torch.randn(batch, shape[1], dtype=torch.bfloat16)
            turns = [{name: seconds(next(layers), x) for name, layers in kernels.items()} for _ in range(TURNS + 1)][1:]
            medians = {f"{name}_s": statistics.median(turn[name] for turn in turns) for name in kernels}
            speedups = {
                f"int4_vs_{name}": statistics.median(turn[name] / turn["int4"] for turn in turns)
                for name in kernels
                if name != "int4"
            }
            rows.append({"out_features": shape[0], "in_features": shape[1], "batch": batch, **medians, **speedups})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.5f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=130).print(table)
    if out:
        pd.DataFrame(rows).to_csv(out, index=False)


if __name__ == "__main__":
    typer.run(main)
