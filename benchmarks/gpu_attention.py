"""Attention of one new token over a cache of one length, as a decode step of Llama-3-8B does it: attention.csv.

    python benchmarks/gpu_attention.py --out FOLDER

`filled` reads what is filled (`qbench.engine.torch.filled`), `masked` hides the rest by a mask, as where FlashAttention
does not serve. Layers are together too many for the cache of the GPU. Each is held to float64, at several lengths, from
one captured graph whose length moves on as in a generation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import record
import timing
import torch
import typer
from torch import Tensor, nn

from qbench.compat.transformers import StaticLayer
from qbench.engine.torch.attention import Attention, grouped
from qbench.engine.torch.filled import Filled

BATCHES = (1, 8, 32)
COLD_BYTES = 200 << 20
TURNS = 5
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}
"""Relative L2 error: the rounding of results."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of attention in a layer; Llama-3-8B's unless given."""

    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    seq_len: int = 2048


class Layer:
    """A layer of the cache, full of random numbers, and a query."""

    def __init__(self, shape: Shape, batch: int, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)

        def random(heads: int, tokens: int) -> Tensor:
            return torch.randn(batch, heads, tokens, shape.width, generator=generator, device=device).to(dtype)

        self.query = random(shape.heads, 1)
        self.cache = StaticLayer(shape.seq_len)
        self.cache.update(random(shape.kv_heads, shape.seq_len), random(shape.kv_heads, shape.seq_len))
        self._places = torch.arange(shape.seq_len, device=device)
        self._mask = torch.zeros(1, 1, 1, shape.seq_len, dtype=torch.bool, device=device)
        self._filled = Filled({0: self.cache})
        self._module = nn.Module()
        self._module.layer_idx = 0

    def count(self) -> None:
        """What a step does once for all layers: count its token, and make the mask that transformers would make."""
        self._filled.before_step()
        self._mask.copy_(self._places <= self.cache.cumulative_length)

    def filled(self) -> Tensor:
        """Attention by the number of tokens."""
        return self._by(self._filled.attention, None)

    def masked(self) -> Tensor:
        """Attention by the mask."""
        return self._by(grouped, self._mask)

    def _by(self, attention: Attention, mask: Tensor | None) -> Tensor:
        return attention(self._module, self.query, self.cache.keys, self.cache.values, mask)[0]

    def exact(self, length: int) -> Tensor:
        """Over the first `length` tokens, in float64: [batch, 1, heads, width]."""
        shared = self.query.shape[1] // self.cache.keys.shape[1]
        keys, values = (
            t[:, :, :length].double().repeat_interleave(shared, dim=1) for t in (self.cache.keys, self.cache.values)
        )
        weights = (self.query.double() @ keys.transpose(2, 3) * self.query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ values).transpose(1, 2)


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A step from a graph, on CUDA."""
    if device.type != "cuda":
        return step
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def worst_error(layer: Layer, way: str, device: torch.device) -> float:
    """Over lengths from one token to all."""
    attention, seq_len, errors = getattr(layer, way), layer.cache.max_cache_len, []

    def counted() -> Tensor:
        layer.count()
        return attention()

    step = captured(counted, device)
    for length in (1, seq_len // 3, seq_len - 1, seq_len):
        layer.cache.cumulative_length.fill_(length - 1)
        exact = layer.exact(length)
        errors.append(float((step().double() - exact).norm() / exact.norm()))
    return max(errors)


@torch.inference_mode()
def rows(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """A row for either way; its cache is full but for an eighth."""
    one = 2 * batch * shape.kv_heads * shape.seq_len * shape.width * dtype.itemsize
    layers = [Layer(shape, batch, dtype, device, seed) for seed in range(COLD_BYTES // one + 1)]
    errors = {way: worst_error(layers[0], way, device) for way in ("filled", "masked")}
    length = shape.seq_len - shape.seq_len // 8
    for layer in layers:
        layer.cache.cumulative_length.fill_(length - 1)
        layer.count()
    timers = {way: timing.prepared([getattr(layer, way) for layer in layers], device) for way in errors}
    seconds = {way: statistics.median(taken) for way, taken in timing.in_turns(timers, TURNS).items()}
    return [
        {
            "attention": way,
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch,
            "seq_len": shape.seq_len,
            "filled": length,
            "us": seconds[way] * 1e6,
            "bytes_per_s": one / shape.seq_len * length / seconds[way],
            "relative_error": error,
            "ok": error < TOLERANCE[dtype],
        }
        for way, error in errors.items()
    ]


def main(out: Annotated[Path | None, typer.Option(help="folder for attention.csv and run.json")] = None) -> None:
    """Compare, and end with status 1 where something is wrong."""
    device, taken = torch.device("cuda", 0), []
    for dtype in (torch.float16, torch.bfloat16):
        for batch in BATCHES:
            taken += rows(Shape(), batch, dtype, device)
    record.keep(out, {"attention": taken}, script="attention")
    if not all(row["ok"] for row in taken):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
