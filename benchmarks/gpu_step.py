"""Steps of `gpu.py` on the GPU at hand: `python benchmarks/gpu_step.py check|linears|tune --out FOLDER`.

check: products against float64, and as a CUDA graph. linears: a block's linears by every backend and other libraries.
tune: block sizes of the Triton kernels, kept in the package.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import gpu_check
import gpu_tune
import linears
import record
import torch
import typer

TUNE_S = 60


class Step(StrEnum):
    """What to do."""

    CHECK = "check"
    LINEARS = "linears"
    TUNE = "tune"


def main(
    step: Annotated[Step, typer.Argument()],
    out: Annotated[Path, typer.Option(help="folder for tables and run.json")],
) -> None:
    """Take one step."""
    device = torch.device("cuda", 0)
    match step:
        case Step.CHECK:
            gpu_check.check(device, out)
        case Step.LINEARS:
            linears.compare(device, out, "llama-3-8b")
        case Step.TUNE:
            path, fastest = gpu_tune.tune(device, TUNE_S)
            record.keep(out, {"tune": fastest}, script="tune")
            shutil.copy(path, out)


if __name__ == "__main__":
    typer.run(main)
