"""Our INT4 kernels on a GPU: checked, tuned, timed, and five backends on the shape of Llama-3-8B. Needs no network.

    python benchmarks/gpu.py check products tune linears models awq gptq --out FOLDER

check: products against float64, and as a CUDA graph. products: variants of the CUDA kernels beside cuBLAS and tinygemm;
the fastest are kept in the package. tune: block sizes of the Triton kernels, kept likewise. linears: a block's linears
by every backend. models, awq, gptq: memory and tokens/s (`configs/llama3-8b-shape.yaml`), in parts, since calibrating
takes its time. Tables, run.json and plots are left in the folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import gpu_check
import gpu_products
import gpu_tune
import linears
import torch
import typer

CONFIG = Path(__file__).parents[1] / "configs" / "llama3-8b-shape.yaml"


class Step(StrEnum):
    """What to do."""

    CHECK = "check"
    PRODUCTS = "products"
    TUNE = "tune"
    LINEARS = "linears"
    MODELS = "models"
    AWQ = "awq"
    GPTQ = "gptq"


def models(out: Path, *labels: str) -> None:
    """Measure some cells of the run, and draw what is there."""
    only = [word for label in labels for word in ("--only", label)]
    qbench = [sys.executable, "-m", "qbench"]
    subprocess.run([*qbench, "run", str(CONFIG), "--results", str(out), *only], check=True)
    subprocess.run([*qbench, "plot", str(out / CONFIG.stem), "--out", str(out / "plots")], check=True)


def main(
    steps: Annotated[list[Step], typer.Argument(help="in this order")],
    out: Annotated[Path, typer.Option(help="folder for tables, run.json and plots")],
) -> None:
    """Take the steps one after another; the first that fails ends it."""
    if not torch.cuda.is_available():
        raise typer.BadParameter(f"torch {torch.__version__} sees no CUDA device here")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    for step in steps:
        match step:
            case Step.CHECK:
                gpu_check.check(device, out)
            case Step.PRODUCTS:
                gpu_products.main(out, seconds=150)
            case Step.TUNE:
                shutil.copy(gpu_tune.tune(device), out)
            case Step.LINEARS:
                linears.compare(device, out, "llama-3-8b")
            case Step.MODELS:
                models(out, "fp16", "int4", "nf4")
            case Step.AWQ | Step.GPTQ:
                models(out, step.value)


if __name__ == "__main__":
    typer.run(main)
