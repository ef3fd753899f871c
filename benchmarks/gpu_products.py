"""The variants of our CUDA kernels on the linears of Llama-3-8B, beside cuBLAS and torch's tinygemm.

    python benchmarks/gpu_products.py --out FOLDER [--seconds 150]

Weights are random and together too many for the cache; calls are replayed as a CUDA graph. products.csv has the
microseconds of a product by every variant, the median of three turns (of those far behind the best, one turn), and of
cuBLAS in 16 bits, alone and after our dequantizing; blocks.csv sums the best of each linear over a block. The
best variants are written as this device's table of `variants`.
"""

from __future__ import annotations

import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import record
import timing
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from qbench.engine.torch.bandwidth import copy_bytes_per_s
from qbench.int4 import QuantizedTensor, dequantize
from qbench.int4.kernels import _cuda, cuda, tuning
from qbench.int4.kernels.base import WeightSpec
from qbench.int4.kernels.variants import Variant, rule_of_thumb
from qbench.int4.pack import unpack

SHAPES = {"o": (4096, 4096), "qkv": (6144, 4096), "down": (4096, 14336), "gate_up": (28672, 4096)}
"""(out_features, in_features), siblings joined."""
ROWS = (1, 8, 16, 32, 64, 128, 256)
GROUP_SIZE = 128
COLD_BYTES = 200 << 20
TURNS = 3
TOLERANCE = 1e-3
TOO_SLOW = 2.0
"""A variant that takes so many times the best in its first turn is not timed again."""


def candidates(rows: int, shape: tuple[int, int], *, hopper: bool) -> list[Variant]:
    """What is tried, the rule of thumb first."""
    found = [rule_of_thumb(rows, *shape, hopper=hopper)]
    tokens = 1 if rows <= 8 else 2
    if rows <= 16:
        sizes = [(1, 1, 8, 1), (1, 1, 8, 2), (1, 1, 4, 2), (2, 1, 4, 1), (2, 1, 4, 2), (2, 1, 8, 1), (1, 1, 16, 1)]
        found += [Variant("product", r, tokens, wr, wk, st, sp) for r, wr, wk, st in sizes for sp in (1, 2)]
    if hopper and rows > 8:
        tokens = max(2, min(16, -(-rows // 8)))
        sizes = [(1, 1, 1, 1), (1, 1, 2, 1), (1, 1, 2, 2), (1, 1, 4, 1), (1, 1, 1, 2), (1, 2, 1, 1), (1, 2, 2, 1)]
        sizes += [(2, 1, 1, 1), (2, 1, 2, 1), (2, 2, 1, 1), (1, 2, 1, 2), (2, 1, 1, 2), (1, 1, 2, 3)]
        found += [Variant("wgmma", r, tokens, wr, wk, st, sp) for r, wr, wk, st in sizes for sp in (1, 2, 4)]
    return list(dict.fromkeys(v for v in found if v.shared_bytes <= 227 << 10))


def weights(shape: tuple[int, int], device: torch.device) -> tuple[QuantizedTensor, list[dict[str, Tensor]]]:
    """A random weight, and it packed in so many copies that no cache holds them."""
    generator = torch.Generator(device).manual_seed(0)
    codes = torch.randint(256, (shape[0], shape[1] // 2), dtype=torch.uint8, device=device, generator=generator)
    scales = torch.rand(shape[0], shape[1] // GROUP_SIZE, device=device, generator=generator).half() / 64
    q = QuantizedTensor(codes, scales, scales / 3, torch.Size(shape), 4, GROUP_SIZE)
    packed = cuda.pack(q)
    copies = COLD_BYTES // packed["words"].nbytes + 1
    return q, [packed, *({k: t.clone() for k, t in packed.items()} for _ in range(copies))]


def median(timer: Any) -> float:
    """Of its turns, in microseconds."""
    return statistics.median(timer() for _ in range(TURNS)) * 1e6


def peers(q: QuantizedTensor, packed: list[dict[str, Tensor]], x: Tensor, device: torch.device) -> dict[str, float]:
    """Microseconds of cuBLAS in 16 bits, of our dequantizing before it, and of tinygemm where it takes so few rows."""
    dense = [dequantize(q, x.dtype) for _ in range(max(2, len(packed) // 4))]
    found = {"cublas": median(timing.prepared([partial(F.linear, x, w) for w in dense], device))}
    if len(x) > 64:
        calls = [partial(dequantized_product, x, w, WeightSpec.of(q)) for w in packed]
        found["dequantize"] = median(timing.prepared(calls, device))
    else:
        codes = unpack(q.qweight, q.shape[1])
        swapped = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        tiled = [torch.ops.aten._convert_weight_to_int4pack(swapped, 8) for _ in packed]
        both = torch.stack((q.scales, q.zeros), dim=-1).transpose(0, 1).contiguous().bfloat16()
        calls = [partial(torch.ops.aten._weight_int4pack_mm, x.bfloat16(), w, GROUP_SIZE, both) for w in tiled]
        found["tinygemm"] = median(timing.prepared(calls, device))
    return found


def dequantized_product(x: Tensor, w: dict[str, Tensor], spec: WeightSpec) -> Tensor:
    """What our operator does with more rows than its own product takes."""
    weight = _cuda.dequantized(
        w["words"], w["pairs"], spec.bits, spec.out_features, spec.in_features, GROUP_SIZE, x.dtype
    )
    return F.linear(x, weight)


def variants_of(
    q: QuantizedTensor, packed: list[dict[str, Tensor]], x: Tensor, deadline: float, device: torch.device
) -> list[dict[str, Any]]:
    """Every candidate with its time and its error against float64."""
    exact = x.double() @ dequantize(q, torch.float64).T
    spec, rows, best = WeightSpec.of(q), [], float("inf")
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    for config in candidates(len(x), (spec.out_features, spec.in_features), hopper=hopper):
        if time.monotonic() > deadline and rows:
            break
        calls = [
            partial(_cuda.product, x, w["words"], w["pairs"], spec.bits, spec.out_features, GROUP_SIZE, config)
            for w in packed
        ]
        error = ((calls[0]().double() - exact).norm() / exact.norm()).item()
        timer = timing.prepared(calls, device)
        taken = timer() * 1e6
        if taken < TOO_SLOW * best:
            taken = median(timer)
        best = min(best, taken)
        rows.append({"variant": "-".join(map(str, config)), "us": taken, "relative_error": error, "config": config})
    return rows


@torch.inference_mode()
def measure(device: torch.device, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of products.csv, and the table of the fastest variants that were right."""
    table, shape_rows = {}, [(n, m) for n in SHAPES for m in ROWS]
    taken, start = [], time.monotonic()
    for i, (name, rows) in enumerate(shape_rows):
        shape = SHAPES[name]
        q, packed = weights(shape, device)
        x = torch.randn(rows, shape[1], device=device).half()
        facts = {"linear": name, "out_features": shape[0], "in_features": shape[1], "rows": rows}
        for peer, us in peers(q, packed, x, device).items():
            taken.append(facts | {"kernel": peer, "variant": "", "us": us, "relative_error": None})
        found = variants_of(q, packed, x, start + seconds * (i + 1) / len(shape_rows), device)
        right = [row for row in found if row["relative_error"] < TOLERANCE]
        if right:
            fastest = min(right, key=lambda row: row["us"])
            table.setdefault(f"{shape[0]}x{shape[1]}", {})[str(max(8, rows))] = list(fastest["config"])
        for row in found:
            config = row.pop("config")
            taken.append(facts | {"kernel": config.source} | row)
        fast = [(r["variant"], round(r["us"], 1)) for r in sorted(right, key=lambda row: row["us"])[:3]]
        print(name, rows, fast, f"{len(found) - len(right)} wrong", flush=True)
    return taken, table


def blocks(taken: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A block's linears together, by rows."""

    def best(rows: int, kernels: tuple[str, ...]) -> float:
        of = [r for r in taken if r["rows"] == rows and r["kernel"] in kernels]
        right = [r for r in of if r["relative_error"] is None or r["relative_error"] < TOLERANCE]
        return sum(min((r["us"] for r in right if r["linear"] == name), default=float("nan")) for name in SHAPES)

    found = []
    for rows in ROWS:
        times = {f"{kernel}_us": best(rows, (kernel,)) for kernel in ("cublas", "tinygemm", "dequantize")}
        ours = best(rows, ("product", "wgmma"))
        found.append({"rows": rows, "int4_us": ours} | times | {"vs_cublas": times["cublas_us"] / ours})
    return found


def main(
    out: Annotated[Path, typer.Option(help="folder for the tables, with run.json")],
    seconds: Annotated[float, typer.Option(help="for all variants together")] = 150,
) -> None:
    """Time the products, and keep the fastest variants."""
    device = torch.device("cuda", 0)
    taken, table = measure(device, seconds)
    bandwidth = [{"copy_bytes_per_s": copy_bytes_per_s(device)}]
    record.keep(
        out, {"products": taken, "blocks": blocks(taken), "bandwidth": bandwidth}, script="products", show=False
    )
    print(*blocks(taken), bandwidth, sep="\n")
    file = tuning.TUNED / f"cuda_{tuning.device_file(device)}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (out / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    typer.run(main)
