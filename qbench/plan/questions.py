"""How many questions a run's MMLU asks, as far as that can be known without fetching them."""

from __future__ import annotations

import csv
from pathlib import Path

from qbench import demo
from qbench.config import MMLUConfig

ALL, SUBJECTS, FEWEST = 14_042, 57, 100
"""Of cais/mmlu's test split: its questions and subjects, and the questions of the smallest subject."""


def count(config: MMLUConfig) -> int | None:
    """The questions of the test split that are asked; None where they lie on the hub and a part of them is chosen."""
    if config.data is not None:
        folder = demo.MMLU_DIR if config.data == "demo" else Path(config.data).expanduser()
        chosen = config.subjects or ("*",)
        files = sorted({file for name in chosen for file in folder.glob(f"test/{name}_test.csv")})
        sizes = [_rows(file) for file in files]
        return sum(min(size, config.limit or size) for size in sizes) or None
    subjects = len(config.subjects) if config.subjects else SUBJECTS
    if config.limit and config.limit <= FEWEST:
        return subjects * config.limit
    return ALL if not config.subjects and not config.limit else None


def _rows(file: Path) -> int:
    with file.open(encoding="utf-8", newline="") as lines:
        return sum(1 for _ in csv.reader(lines))
