"""The linears of a model's block by every backend of qbench, as ratios measured in one run.

    python benchmarks/linears.py [--device cpu|cuda] [--out FOLDER]

Every backend loads a model of one block with random weights, as in a run; the block is then copied until the weights
exceed every cache, and each group of linears that reads the same input is called through the copies. A row has the
median seconds of a call and how many times faster INT4 is, with quartiles. On CUDA, AWQ's and GPTQ's are Marlin where
it can be compiled, and other libraries' linears stand beside them (`peers.py`). What cannot be timed is a row with the
reason.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import linears_plot
import peers
import record
import timing
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from qbench.backends.awq import AWQ
from qbench.backends.base import import_backend
from qbench.backends.fp16 import FP16
from qbench.backends.gptq import GPTQ
from qbench.backends.int4 import Int4
from qbench.backends.nf4 import NF4
from qbench.config import Backend, ModelConfig
from qbench.config.resolve import device_type
from qbench.config.target import DeviceType
from qbench.model import find
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, resolve_dtype

BACKENDS: tuple[Backend, ...] = (
    FP16(label="fp16"),
    Int4(label="int4"),
    NF4(label="nf4"),
    AWQ(label="awq"),
    GPTQ(label="gptq"),
)
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Linears that read the same input."""
BATCHES = {"cpu": (1, 2, 4, 8, 16, 32, 64), "cuda": (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)}
TURNS = 7
COLD_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Copies of a block's linears are at least so many bytes, in 16 bits."""
VOCABULARY = 1024
"""Instead of 128,256: no embedding is timed."""


def one_block(folder: Path, shape: str, dtype: torch.dtype, device: DeviceType) -> Path:
    """A model of one block with random weights, kept in the cache."""
    config = json.loads(find.shapes()[shape].read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = ModelConfig(path=folder, weights="random")
    return find.resolve(model, dtype=str(dtype).removeprefix("torch."), seed=0, say=print, device=device)


def blocks(backend: Backend, options: LoadOptions, copies: int) -> tuple[str, list[nn.Module]]:
    """The kernel's name, and a backend's block in so many copies."""
    calibration = Calibration(text=None, samples=2, length=32, seed=0)
    module: Any = import_backend(backend)
    if hasattr(module, "prepare"):
        options = replace(options, progress=lambda what, done, total: print(f"\r{what}: {done} s", end="", flush=True))
        module.prepare(options, backend)
    loaded = module.load(options, backend, calibration)
    block = loaded.model.model.layers[0]
    return loaded.kernel, [block, *(copy.deepcopy(block) for _ in range(copies - 1))]


def call(linears: list[nn.Module], x: Tensor) -> list[Any]:
    """What a block does with one input."""
    return [linear(x) for linear in linears]


def timer(found: list[nn.Module], group: str, batch: int, options: LoadOptions) -> Callable[[], float]:
    """Times a group of linears through the copies of a block."""
    linears = [[block.get_submodule(name) for name in GROUPS[group]] for block in found]
    width = cast(nn.Linear, linears[0][0]).in_features  # every backend's linear has it
    dtype = getattr(linears[0][0], "takes", options.dtype)
    x = torch.randn(1, batch, width, device=options.device, dtype=dtype)
    return timing.prepared([partial(call, each, x) for each in linears], options.device)


def peer_blocks(block: nn.Module, name: str, copies: int) -> list[nn.Module]:
    """A 16-bit block with another library's linears in its place, in so many copies."""
    other = copy.deepcopy(block)
    for path in (path for group in GROUPS.values() for path in group):
        other.set_submodule(path, peers.of(cast(nn.Linear, block.get_submodule(path)), peers.PEERS[name]))
    return [other, *(copy.deepcopy(other) for _ in range(copies - 1))]


def load_all(
    options: LoadOptions, copies: int, console: Console
) -> tuple[dict[str, tuple[str, list[nn.Module]]], dict[str, str]]:
    """Kernels and blocks by backend, and of those that cannot be loaded here the reason."""
    found, missing = {}, {}
    for backend in BACKENDS:
        try:
            with tempfile.TemporaryDirectory() as work:
                own = LoadOptions(folder=options.folder, device=options.device, dtype=options.dtype, work=Path(work))
                found[backend.label] = blocks(backend, own, copies)
        except Exception as error:  # whatever a library raises: the others are still compared
            missing[backend.label] = f"{type(error).__name__}: {error}"
    for name in peers.PEERS if options.device.type == "cuda" and "fp16" in found else ():
        try:
            with torch.no_grad():
                found[name] = (name, peer_blocks(found["fp16"][1][0], name, copies))
        except Exception as error:  # as above
            missing[name] = f"{type(error).__name__}: {error}"
    for label, reason in missing.items():
        console.print(f"{label} left out: {reason}")
    return found, missing


def rows(
    found: dict[str, tuple[str, list[nn.Module]]],
    missing: dict[str, str],
    group: str,
    batch: int,
    options: LoadOptions,
) -> list[Any]:
    """A row for each backend, but for what is the same in all."""
    timers, failed = {}, dict(missing)
    for label, (_, linears) in found.items():
        try:
            timers[label] = timer(linears, group, batch, options)
        except Exception as error:  # a kernel that takes only so many rows, or cannot be captured
            failed[label] = f"{type(error).__name__}: {error}"
    taken = timing.in_turns(timers, TURNS)
    return [
        {
            "linears": group,
            "batch": batch,
            "backend": label,
            "kernel": found[label][0],
            "dtype": str(options.dtype).removeprefix("torch."),
            "seconds": sorted(seconds)[TURNS // 2],
            **timing.ratio(taken["int4"], seconds, "int4"),
        }
        for label, seconds in taken.items()
    ] + [{"linears": group, "batch": batch, "backend": label, "reason": reason} for label, reason in failed.items()]


def compare(device: torch.device, out: Path | None, shape: str) -> None:
    """Time every group, batch size and backend."""
    dtype = resolve_dtype("auto", device)
    with tempfile.TemporaryDirectory() as folder:
        made = one_block(Path(folder), shape, dtype, device_type(device.type))
        options = LoadOptions(folder=made, device=device, dtype=dtype, work=Path())
    largest = sum(file.stat().st_size for file in options.folder.glob("*.safetensors"))
    copies = 2 + COLD_BYTES[device.type] // largest * 4
    found, missing = load_all(options, copies, Console())
    cases = [(group, batch) for group in GROUPS for batch in BATCHES[device.type]]
    taken: list[dict[str, Any]] = []
    try:
        for case in track(cases, "linears", transient=True):
            taken += [{"shape": shape} | row for row in rows(found, missing, *case, options)]
    finally:  # what is there when it is interrupted
        record.keep(out, {"linears": taken}, script="linears")
    if out is not None:
        linears_plot.main(out)


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    shape: Annotated[str, typer.Option(help="a shipped shape")] = "tinyllama-1.1b",
    out: Annotated[Path | None, typer.Option(help="folder for the table as CSV, with run.json")] = None,
) -> None:
    """Compare the backends' linears."""
    compare(torch.device(device), out, shape)


if __name__ == "__main__":
    typer.run(main)
