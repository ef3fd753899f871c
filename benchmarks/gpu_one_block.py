"""AWQ or GPTQ on the shape of Llama-3-8B without the minutes that calibrating takes: one block, repeated.

    python benchmarks/gpu_one_block.py awq|gptq --out FOLDER

A model of one block is quantized, and its codes stand in every block of the checkpoint that is measured. Memory and
speed depend on shapes, not on codes; nothing else is measured. The cell is labelled `<kind>-one-block`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from qbench.config import ModelConfig, backend_kinds
from qbench.model import find
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions

CONFIG = Path(__file__).parents[1] / "configs" / "llama3-8b-shape.yaml"
FIRST = "model.layers.0."
CALIBRATION = Calibration(text=None, samples=8, length=64, seed=0)


def quantize(kind: str, options: LoadOptions, out: Path) -> None:
    """Write a checkpoint of the model in `options`."""
    module, config = importlib.import_module(f"qbench.backends.{kind}"), backend_kinds()[kind](kind=kind)
    module.quantize(options, config, CALIBRATION, out)


def repeat(checkpoint: Path, layers: int, out: Path) -> None:
    """Write the checkpoint of a model of one block with that block's tensors in each of `layers`, a file a layer."""
    stored = {name: t for file in checkpoint.glob("*.safetensors") for name, t in load_file(file).items()}
    block = {name.removeprefix(FIRST): tensor for name, tensor in stored.items() if name.startswith(FIRST)}
    others = {name: tensor for name, tensor in stored.items() if not name.startswith(FIRST)}
    out.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, out)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
    index: dict[str, str] = {}
    for number in range(layers + 1):
        prefix = f"model.layers.{number}."
        tensors = {f"{prefix}{name}": tensor for name, tensor in block.items()} if number < layers else others
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    content = {"metadata": {}, "weight_map": index}
    (out / find.INDEX).write_text(json.dumps(content), encoding="utf-8")


def main(
    kind: Annotated[str, typer.Argument(help="awq or gptq")],
    out: Annotated[Path, typer.Option(help="folder for the run")],
) -> None:
    """Quantize one block, and measure the whole shape with it."""
    out.mkdir(parents=True, exist_ok=True)
    run = YAML(typ="safe").load(CONFIG)
    shape = json.loads(find.shapes()[run["model"]["shape"]].read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        single, one, whole = (Path(work) / name for name in ("config", "one", "whole"))
        single.mkdir()
        (single / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 1}), encoding="utf-8")
        model = ModelConfig(path=single, weights="random")
        folder = find.resolve(model, dtype="float16", seed=0, say=typer.echo, device="cuda")
        device, dtype = torch.device("cuda", 0), torch.float16
        options = LoadOptions(folder=folder, device=device, dtype=dtype, work=Path(work) / "work")
        # In a process that ends: this one would be on the GPU beside the run that is measured.
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            pool.submit(quantize, kind, options, one).result()
        repeat(one, shape["num_hidden_layers"], whole)
        run |= {
            "name": f"{run['name']}-{kind}",
            "backends": [{"kind": kind, "label": f"{kind}-one-block", "checkpoint": str(whole)}],
        }
        file = out / f"{kind}-one-block.yaml"
        file.write_text(json.dumps(run), encoding="utf-8")  # which is YAML, too
        command = [sys.executable, "-m", "qbench", "run", str(file), "--results", str(out)]
        raise typer.Exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    typer.run(main)
