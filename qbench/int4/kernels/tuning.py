"""Block sizes of the Triton kernels: tuned for a device and shape where that was done, else a rule of thumb.

`tuned/<device>.json` maps "<out_features>x<in_features>" to {"<most rows>": [block_m, block_n, split_k, warps,
stages]}; `make bench-gpu` measures one.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).parent / "tuned"
BUCKETS = (1, 2, 4, 16, 32, 64)
"""Numbers of rows that share a configuration with the fewer ones above the last."""


class Config(NamedTuple):
    """What a product is launched with."""

    block_m: int
    """Rows of x a program; without meaning up to 4 rows."""
    block_n: int
    split_k: int
    """Programs that share the columns."""
    warps: int
    stages: int


def bucket(rows: int) -> int:
    """The smallest bucket with room for so many rows."""
    return next(size for size in BUCKETS if rows <= size)


def configuration(rows: int, out_features: int, in_features: int, device: torch.device) -> Config:
    """For x of so many rows and a weight of that shape."""
    table = tuned(device_file(device)) if device.type == "cuda" else {}
    found = table.get(f"{out_features}x{in_features}", {}).get(str(bucket(rows)))
    return found or rule_of_thumb(rows, out_features, in_features)


def rule_of_thumb(rows: int, out_features: int, in_features: int) -> Config:
    """Enough programs for some 130 multiprocessors, a few on each."""
    blocks = -(-in_features // 128)
    block_m = max(16, bucket(rows))
    programs = -(-out_features // 64)
    split = 1
    while split < min(16, blocks) and programs * split < 4 * 132:
        split *= 2
    return Config(block_m, 64, split, 4, 4 if block_m < 64 else 3)


@cache
def device_file(device: torch.device) -> str:
    """Name of the file for a GPU: what its driver calls it, in letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", torch.cuda.get_device_name(device)).strip("_")


@cache
def tuned(name: str) -> dict[str, dict[str, Config]]:
    """The table of a device; empty where it was not tuned."""
    path = TUNED / f"{name}.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    return {shape: {rows: Config(*values) for rows, values in row.items()} for shape, row in table.items()}
