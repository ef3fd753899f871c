"""A decode step in each decode mode, as ratios to stock transformers' forward, measured in one process.

    python benchmarks/decode_step.py [CONFIG] [--only LABEL]… [--mode MODE]… [--set KEY=VALUE]… [--turns N] [--out DIR]

Model, backends, batch sizes and lengths are those of a configuration (TinyLlama's shape unless given; its `fp16` and
`int4`). For each batch size every mode reads the same prompt; then the modes take turns of a few steps each until all
tokens are generated. Ratios are taken within a turn, where the sequences are equally long, so that a machine that
drifts still compares. `stock` is an ordinary forward over a preallocated cache with transformers' own attention. A
turn's time is the mean of its steps; a row has the median of the turns and the quartiles of the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import record
import timing
import torch
import typer
from rich.console import Console
from rich.progress import track

from qbench.backends.base import import_backend
from qbench.config import load
from qbench.config.run import RunConfig
from qbench.engine.torch.decode import Decoder, make_decoder
from qbench.engine.torch.eager import EagerDecoder
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.model import find
from qbench.model.load import LoadOptions, resolve_device, resolve_dtype

CONFIG = Path(__file__).parent.parent / "configs" / "tinyllama-shape.yaml"


class StockDecoder(EagerDecoder):
    """Steps with transformers' own attention."""

    def step(self, token: torch.Tensor) -> torch.Tensor:
        return self._forward(token)


def decoder_of(mode: str, loaded: LoadedModel, batch_size: int, seq_len: int) -> Decoder:
    """A decoder, ready."""
    if mode == "stock":
        return StockDecoder(loaded.model, seq_len)
    asked = TorchEngine(loaded).decode_mode(mode)  # type: ignore[arg-type]
    return make_decoder(loaded.model, asked, batch_size, seq_len)


@torch.inference_mode()
def timer(decoder: Decoder, prompt: torch.Tensor, steps: int) -> Callable[[], float]:
    """What continues the prompt by so many steps and gives the mean seconds of one."""
    token = decoder.step(decoder.prefill(prompt))  # captures, allocates, repacks

    @torch.inference_mode()
    def turn() -> float:
        nonlocal token
        _wait(prompt.device)
        start = time.perf_counter()
        for _ in range(steps):
            token = decoder.step(token)
        _wait(prompt.device)
        return (time.perf_counter() - start) / steps

    return turn


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rows(loaded: LoadedModel, label: str, config: RunConfig, modes: list[str], turns: int) -> list[dict[str, object]]:
    """Of one backend, every batch size and mode."""
    timed = config.measure.throughput
    assert timed is not None, "the configuration measures no throughput"
    steps = (timed.new_tokens - 2) // turns  # the prompt gives the first token, an uncounted step the second
    if steps < 1:
        raise typer.BadParameter(f"{turns} turns need {turns + 2} new tokens; the configuration has {timed.new_tokens}")
    found: list[dict[str, object]] = []
    for batch_size in timed.batch_sizes:
        torch.compiler.reset()
        vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
        prompt = torch.randint(vocabulary, (batch_size, timed.prompt_tokens), device=loaded.device)
        decoders: dict[str, Decoder] = {}
        timers: dict[str, Callable[[], float]] = {}
        for mode in track(modes, f"{label}, batch {batch_size}: compile, read the prompt"):
            decoders[mode] = decoder_of(mode, loaded, batch_size, timed.seq_len)
            timers[mode] = timer(decoders[mode], prompt, steps)
        seconds = timing.in_turns(timers, turns)
        found += [
            {
                "label": label,
                "kernel": loaded.kernel,
                "batch": batch_size,
                "mode": mode,
                "step_ms": statistics.median(seconds[mode]) * 1e3,
                "fastest_ms": min(seconds[mode]) * 1e3,
                **timing.ratio(seconds[mode], seconds[modes[0]], modes[0]),
                "compile_s": getattr(decoders[mode], "compile_s", ""),
            }
            for mode in modes
        ]
    return found


def main(
    config: Annotated[Path, typer.Argument(help="YAML file")] = CONFIG,
    only: Annotated[list[str] | None, typer.Option(help="label of a backend; fp16 and int4 unless given")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="decode mode; the first is what others are held to")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="as of qbench run: dtype=float32")] = None,
    turns: Annotated[
        int, typer.Option(help="of each mode at each batch size; they share the configuration's new tokens")
    ] = 7,
    out: Annotated[Path | None, typer.Option(help="folder for the table as CSV, with decode_step.run.json")] = None,
) -> None:
    """Measure, print and keep."""
    settings = load.load(config, overrides or ())
    device = resolve_device(settings.device)
    modes = mode or ["stock", "eager", *(["graph"] if device.type == "cuda" else []), "compiled"]
    folder = find.find_model(settings, cuda=device.type == "cuda", say=Console().print)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    options = LoadOptions(folder=folder, device=device, dtype=resolve_dtype(settings.dtype, device), work=folder)
    table: list[dict[str, object]] = []
    for backend in settings.backends:
        if backend.label in (only or ["fp16", "int4"]):
            loaded = import_backend(backend).load(options, backend, None)
            assert isinstance(loaded, LoadedModel)
            table += rows(loaded, backend.label, settings, modes, turns)
            del loaded
    record.keep(out, {"decode_step": table}, script="decode_step")


if __name__ == "__main__":
    typer.run(main)
