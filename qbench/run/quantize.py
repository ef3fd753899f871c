"""`qbench quantize`: one int4 cell of a configuration as a checkpoint on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qbench.backends.int4 import Int4
from qbench.backends.int4.manifest import read_manifest
from qbench.config import RunConfig
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.model.find import find_model
from qbench.plan import cells as plan
from qbench.run.cells import Reporter
from qbench.run.events import ProgressEvent


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that was written."""

    folder: Path
    label: str
    """The cell it belongs to."""
    bytes: int
    """All files together."""
    bits_per_weight: float
    """Bytes of codes, scales and zeros x 8 / weights of the linears in attention and MLP blocks."""


def quantize(
    config: RunConfig, out: Path, reporter: Reporter, *, label: str | None = None, force: bool = False
) -> Written:
    """Quantize the model of a configuration as its int4 cell says, into the folder `out`.

    Raises:
        QbenchError: there is no such cell, `out` is not free, or the model cannot be found or quantized.
    """
    cell = find_cell(config, label)
    check_out(out, force=force)
    machine = environment.detect()
    plan.preflight(config, machine)
    model = find_model(config, cuda=bool(machine.gpus), say=reporter.say)
    reporter.cell_started(cell.label, 1, 1)

    def progress(what: str, done: int, total: int) -> None:
        reporter.progress(ProgressEvent(what=what, done=done, total=total))

    bits = _write(config, cell, model, out, progress)
    return Written(out, cell.label, sum(file.stat().st_size for file in out.iterdir()), bits)


def find_cell(config: RunConfig, label: str | None) -> Int4:
    """The int4 cell of a configuration, by its label where there are several.

    Raises:
        QbenchError: there is none, or not one.
    """
    chosen = plan.select(config, [label] if label else (), option="--cell")
    cells = [backend for backend in chosen if isinstance(backend, Int4)]
    if not cells:
        held = f"{label} is {chosen[0].kind}" if label else f"there are {', '.join(b.kind for b in chosen)}"
        raise QbenchError(f"backends: {held}; only int4 is quantized here, add `- kind: int4`")
    if len(cells) > 1:
        raise QbenchError(f"backends: several are int4; name one with --cell: {', '.join(c.label for c in cells)}")
    if cells[0].checkpoint is not None:
        raise QbenchError(f"backends.{cells[0].label}: has a `checkpoint:` already; remove it to quantize the model")
    return cells[0]


def check_out(out: Path, *, force: bool) -> None:
    """Make sure that nothing but an old checkpoint can be lost.

    Raises:
        QbenchError: `out` is not empty and is no checkpoint, or is one and may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        read_manifest(out)
    except QbenchError as error:
        raise QbenchError(f"--out {out}: is taken by something that is no checkpoint; choose another folder") from error
    if not force:
        raise QbenchError(f"--out {out}: holds a checkpoint; replace it with --force, or choose another folder")


def _write(config: RunConfig, cell: Int4, model: Path, out: Path, progress: Callable[[str, int, int], None]) -> float:
    """Bits a weight. Torch is imported only here, after everything else was found right."""
    with quiet_libraries():
        import torch

        from qbench.backends.int4 import checkpoint
        from qbench.backends.int4.loading import timed_quantizer
        from qbench.model import calibration
        from qbench.model.load import LoadOptions, resolve_device, resolve_dtype

    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    options = LoadOptions(
        folder=model,
        device=device,
        dtype=resolve_dtype(config.dtype, device),
        work=out,
        trust_remote_code=config.model.trust_remote_code,
        progress=progress,
    )
    text = calibration.prepare(config.calibration, config.model, config.seed) if cell.calibrates else None
    quantize_one = timed_quantizer(options, cell, text)
    return checkpoint.write(options, cell, quantize_one, out.resolve())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries log at import what they could not load of each other, whether or not it is used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
