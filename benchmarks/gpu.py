"""A quarter of an hour on a CUDA GPU: what is wrong, how fast, and how far from what is aimed at. Needs no network.

    python benchmarks/gpu.py --out FOLDER [STEP ...]

Steps run in the order of their worth, each as a process with a limit of its own (`steps.py`), and leave their tables in
a folder of the GPU's name. The same command again goes on with those that are missing, failed, or come from other code.
It ends with a table of what was measured against what is aimed at (`gpu_targets.py`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import gpu_targets
import torch
import typer
from steps import Step, take

from qbench.config.kinds import CODE_SUFFIXES
from qbench.machine import environment
from qbench.model import content

ROOT = Path(__file__).parents[1]
RUN = "llama3-8b-shape"
"""The run of the 8 B shape, by the name in its configuration."""


def steps(out: Path) -> list[Step]:
    """All of them; limits are about twice what an H100 took, as far as that is known."""

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (sys.executable, str(Path(__file__).with_name(name)), *words, "--out", str(out))

    def run(config: str, *words: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "qbench", "run", str(ROOT / "configs" / config), "--results", str(out), *words)

    # Kernels that need no compiler: the linears are where Marlin is compiled.
    smoke = ["name=smoke-cuda", "device=cuda", "backends.awq.kernel=gemm_triton", "backends.gptq.kernel=triton"]
    sets = [word for setting in smoke for word in ("--set", setting)]
    only = [word for label in ("fp16", "int4", "nf4") for word in ("--only", label)]
    # torch.compile takes half a minute for each batch size of a cell.
    compiled = run(
        *(f"{RUN}.yaml", "--only", "fp16", "--only", "int4", "--set", f"name={RUN}-compiled"),
        *("--set", "measure.throughput.decode=compiled"),
    )
    return [
        Step("check", script("gpu_step.py", "check"), 150, ("int4_check.csv", "bandwidth_check.csv")),
        Step("attention", script("gpu_attention.py"), 60, ("attention.csv",)),
        Step("smoke", run("smoke.yaml", *sets), 180, ("smoke-cuda/summary.csv",)),
        Step("products", script("gpu_products.py", "--seconds", "90"), 150, ("products.csv", "blocks.csv")),
        Step("models", run(f"{RUN}.yaml", *only), 240, (f"{RUN}/summary.csv",)),
        Step("compiled", compiled, 400, (f"{RUN}-compiled/summary.csv",)),
        Step("linears", script("gpu_step.py", "linears"), 400, ("linears.csv",)),
        Step("awq", script("gpu_one_block.py", "awq"), 150, (f"{RUN}-awq/summary.csv",)),
        Step("gptq", script("gpu_one_block.py", "gptq"), 150, (f"{RUN}-gptq/summary.csv",)),
        Step("tune", script("gpu_step.py", "tune"), 90, ("tune.csv",)),
    ]


def code() -> str:
    """A hash of what measures: the package and the benchmarks, less the tables that products and tune write."""
    files = [path for folder in ("qbench", "benchmarks") for path in (ROOT / folder).rglob("*")]
    return content.identify([path for path in files if path.suffix in CODE_SUFFIXES], ROOT)


def main(
    out: Annotated[Path, typer.Option(help="folder for tables and runs")],
    names: Annotated[list[str] | None, typer.Argument(help="steps; all unless given")] = None,
) -> None:
    """Take the steps that are not done."""
    if not torch.cuda.is_available():
        raise typer.BadParameter(f"torch {torch.__version__} sees no CUDA device here")
    # By the driver: asking torch could put this process on the GPU beside those that are measured.
    device = environment.detect().gpus[0].name
    out = out / re.sub(r"[^A-Za-z0-9]+", "_", device)
    facts = {"code": code(), "device": device, "torch": torch.__version__}
    there = steps(out.resolve())
    if unknown := set(names or ()) - {step.name for step in there}:
        known = ", ".join(step.name for step in there)
        raise typer.BadParameter(f"no such step: {', '.join(sorted(unknown))} (there are: {known})")
    endings = take([step for step in there if not names or step.name in names], out, facts, typer.echo)
    gpu_targets.main(out, RUN)
    raise typer.Exit(int(not set(endings.values()) <= {"done", "kept"}))


if __name__ == "__main__":
    typer.run(main)
