"""The CUDA and Triton kernels on the GPU at hand, against float64, also in a CUDA graph; and how fast it copies."""

from __future__ import annotations

import itertools
from pathlib import Path

import record
import torch
import typer
from rich.progress import track

from qbench.engine.torch.bandwidth import copy_bytes_per_s
from qbench.int4 import QuantLinear, dequantize, quantize
from qbench.machine.bandwidth import of_gpu

SHAPES = ((6144, 4096), (28672, 4096), (4096, 14336), (65, 130), (40, 65), (1000, 4095))
"""(out_features, in_features): joined linears of Llama-3-8B, and some that are not whole blocks."""
BATCHES = (1, 2, 3, 4, 5, 8, 16, 17, 32, 33, 64, 65, 512)
KERNELS = ("cuda", "triton")
GROUP_SIZES = (128, 64, 32, -1)
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative L2 error: the rounding of results."""


def replayed(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """What a captured graph gives for x, captured with other numbers in its place."""
    held = torch.zeros_like(x)
    layer(held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(held)
    held.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    return out


@torch.inference_mode()
def rows(
    kernel: str, shape: tuple[int, int], group_size: int, dtype: torch.dtype, device: torch.device
) -> list[dict[str, object]]:
    """A row for each batch size."""
    generator = torch.Generator(device).manual_seed(0)
    q = quantize(torch.randn(shape, generator=generator, device=device), group_size=group_size, scale_dtype=dtype)
    layer, weight = QuantLinear(q, kernel=kernel), dequantize(q).double()
    found = []
    for batch in BATCHES:
        x = torch.randn(batch, shape[1], generator=generator, device=device).to(dtype)
        expected = x.double() @ weight.T
        out = layer(x)
        error = ((out.double() - expected).norm() / expected.norm()).item()
        found.append(
            {
                "kernel": kernel,
                "out_features": shape[0],
                "in_features": shape[1],
                "group_size": group_size,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "relative_error": error,
                "graph_gives_the_same": torch.equal(out, replayed(layer, x)),
                "ok": error < TOLERANCE[dtype] and torch.equal(out, replayed(layer, x)),
            }
        )
    return found


def bandwidth(device: torch.device) -> dict[str, object]:
    """What copies within its memory reach, and what its data sheet says: none exceeds it, and few stay below half."""
    name = torch.cuda.get_device_name(device)
    copied, sheet = copy_bytes_per_s(device), of_gpu(name)
    left = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    plausible = copied is not None and (sheet is None or 0.5 < copied / sheet.bytes_per_s <= 1)
    stated = sheet.bytes_per_s if sheet else None
    return {"gpu": name, "copied": copied, "sheet": stated, "ok": plausible and left == 0}


def check(device: torch.device, out: Path | None) -> None:
    """Check everything.

    Raises:
        typer.Exit: a product is wrong, or the bandwidth is not plausible.
    """
    copies = bandwidth(device)
    typer.echo(f"bytes a second: {copies}")
    cases = list(itertools.product(KERNELS, SHAPES, GROUP_SIZES, TOLERANCE))
    taken: list[dict[str, object]] = []
    try:
        for case in track(cases, "check", transient=True):
            taken += rows(*case, device)
    finally:  # what is there when it is interrupted
        record.keep(out, {"int4_check": taken, "bandwidth_check": [copies]}, script="check", show=False)
    wrong = [row for row in taken if not row["ok"]]
    typer.echo(f"{len(taken)} products, {len(wrong)} wrong" + "".join(f"\n{row}" for row in wrong[:20]))
    if wrong or not copies["ok"]:
        raise typer.Exit(1)
