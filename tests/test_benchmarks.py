"""The scripts in benchmarks/, as far as they run without a GPU and in a moment."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]

TUNE = """
import sys
sys.path.insert(0, "benchmarks")
import torch
import gpu_tune
gpu_tune.candidates = lambda rows: [gpu_tune.Config(16, 32, split, 4, 2) for split in (1, 2)]
weights = [gpu_tune.packed((64, 256), torch.device("cpu"))]
for rows in (1, 16):
    found = gpu_tune.fastest(rows, weights, deadline=float("inf"))
    assert found[0] in gpu_tune.candidates(rows) and found[1] > 0
assert gpu_tune.fastest(1, weights, deadline=0) is None
"""


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_the_gpu_benchmark_says_what_it_lacks(tmp_path: Path) -> None:
    done = run("benchmarks/gpu.py", "check", "--out", str(tmp_path / "out"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_fastest_block_sizes_are_found() -> None:
    done = run("-c", TUNE, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


def test_the_plot_of_the_linears(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import linears_plot

    table = pd.DataFrame(
        [
            {"shape": "x", "linears": group, "batch": batch, "backend": backend, "seconds": batch * factor}
            for group in ("qkv", "o", "gate_up")
            for batch in (1, 8)
            for backend, factor in (("fp16", 1.0), ("int4", 0.5))
        ]
    )
    paths = linears_plot.draw(table, "a machine", tmp_path)
    assert [path.name for path in paths] == ["linears.png", "linears.svg"]
    text = paths[1].read_text(encoding="utf-8")
    assert "INT4" in text or "<!-- INT4 -->" in text
