"""Which variant of the CUDA kernels multiplies: measured for a GPU and shape, else by a rule of thumb.

`tuned/cuda_<device>.json` maps "<out_features>x<in_features>" to {"<most rows>": a `Variant` as a list};
`benchmarks/gpu_products.py` measures one.
"""

from __future__ import annotations

import json
from functools import cache
from typing import NamedTuple

import torch

from qbench.int4.kernels import tuning
from qbench.int4.limits import CUDA_MAX_ROWS

BUCKETS = (8, 16, 32, 64, 128, CUDA_MAX_ROWS)
"""Numbers of rows that share a variant with the fewer ones above the last."""
MULTIPROCESSORS = 132
"""Of an H100 or H200; other GPUs have 80 to 190."""
BLOCK = 128
"""Columns of a block of weights, as `weights.cuh` says."""


class Variant(NamedTuple):
    """What a product is compiled and launched with; see `product.cu` and `wgmma.cu`."""

    source: str
    """"product" for mma.sync, "wgmma" for Hopper's."""
    tiles: int
    """R: tiles of 16 outputs a warp, or of 64 a group of four."""
    tokens: int
    """NT: rows of x of a block, in units of 8."""
    wide: int
    """WR: warps, or groups of four, side by side along the outputs."""
    deep: int
    """WK: those that share the columns."""
    stages: int
    """Blocks of 128 columns whose weights are loaded ahead."""
    splits: int
    """Blocks of the grid that share the columns."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.wide * self.deep * (4 if self.source == "wgmma" else 1)

    @property
    def rows(self) -> int:
        """Rows of x of a block."""
        return 8 * self.tokens

    @property
    def outputs(self) -> int:
        """Outputs of a block."""
        return self.wide * self.tiles * (64 if self.source == "wgmma" else 16)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the sums of a block and, for wgmma before them, three buffers of x."""
        pad = 4 if self.source == "wgmma" else 1
        sums = 4 * self.deep * self.rows * (self.outputs + pad)
        return max(sums, 3 * self.deep * self.rows * 256) if self.source == "wgmma" else sums

    @property
    def macros(self) -> dict[str, int]:
        """That the sources are compiled with."""
        return {"R": self.tiles, "NT": self.tokens, "WR": self.wide, "WK": self.deep, "STAGES": self.stages}


def bucket(rows: int) -> int:
    """The smallest bucket with room for so many rows."""
    return next(size for size in BUCKETS if rows <= size)


def variant(rows: int, out_features: int, in_features: int, device: torch.device) -> Variant:
    """For x of so many rows and a weight of that shape."""
    table = tuned(f"cuda_{tuning.device_file(device)}")
    found = table.get(f"{out_features}x{in_features}", {}).get(str(bucket(rows)))
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    return found or rule_of_thumb(rows, out_features, in_features, hopper=hopper)


def rule_of_thumb(rows: int, out_features: int, in_features: int, *, hopper: bool) -> Variant:
    """What was fastest or nearly so for such a shape on an H100 (results/published/int4-linears-h100)."""
    size, large, long = bucket(rows), out_features >= 16384, in_features > 8192
    if size == 8:
        return Variant("product", 1, 1, 1, 4, 2, 1) if large else Variant("product", 1, 1, 1, 16, 1, 1)
    if size == 16:
        at_once = out_features <= 2 * 16 * MULTIPROCESSORS
        return Variant("product", 2, 2, 1, 8, 1, 1) if large else Variant("product", 1, 2, 1, 8, 1 + at_once, 1)
    if not hopper:
        tokens = min(8, size // 8)
        return Variant("product", 2, tokens, 1, 4, 1 if tokens == 4 else 2, 1)
    if size == 32:
        return _split(Variant("wgmma", 1, 4, 1, 2, 2, 1), size, out_features, in_features, 2 * MULTIPROCESSORS)
    if size == 64:
        narrow = Variant("wgmma", 1, 8, 2, 2, 1, 1) if long else Variant("wgmma", 1, 8, 1, 4, 1, 1)
        chosen = Variant("wgmma", 1, 8, 2, 1, 1, 1) if large else narrow
        return _split(chosen, size, out_features, in_features, MULTIPROCESSORS)
    if large:
        return Variant("wgmma", 2, 16, 2, 1, 1, 1)
    chosen = Variant("wgmma", 1, 16, 1, 2, 2, 1)
    return _split(chosen, size, out_features, in_features, MULTIPROCESSORS) if long else chosen


def _split(chosen: Variant, rows: int, out_features: int, in_features: int, at_once: int) -> Variant:
    """With as many splits as there is room for `at_once` blocks, each with some columns for every warp."""
    programs = -(-out_features // chosen.outputs) * -(-rows // chosen.rows)
    columns = in_features // BLOCK // (4 * chosen.deep)
    return chosen._replace(splits=max(1, min(at_once // programs, columns)))


@cache
def tuned(name: str) -> dict[str, dict[str, Variant]]:
    """The table of a device; empty where it was not tuned."""
    path = tuning.TUNED / f"{name}.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    return {shape: {rows: Variant(*values) for rows, values in row.items()} for shape, row in table.items()}
