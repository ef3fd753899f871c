"""`qbench export`: the weights of a cell in a format that other programs run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.config import Backend, RunConfig
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.model import content
from qbench.model.find import find_model
from qbench.plan import cells as plan
from qbench.run import checkpoints, fingerprint
from qbench.run.cells import Reporter
from qbench.run.events import ProgressEvent
from qbench.run.quantize import quiet_libraries

FORMATS = {"gguf": "qbench.backends.gguf.export", "mlx": "qbench.backends.mlx.export"}
"""Modules with `export(options, config, name, out)` by format, which is the kind of the cells that have it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    file: Path
    """A file, or a folder of them."""
    label: str
    """The cell it belongs to."""
    bytes: int


def export(
    config: RunConfig, out: Path, reporter: Reporter, *, label: str | None = None, to: str = "gguf", force: bool = False
) -> Exported:
    """Write the weights of a cell into the folder `out`: those that a run has cached, or else new ones.

    Raises:
        QbenchError: there is no such cell, `out` is not free, or the model cannot be found or converted.
    """
    cell = find_cell(config, label, to)
    check_out(out, force=force)
    machine = environment.detect()
    plan.preflight(config, machine)
    model = find_model(config, cuda=bool(machine.gpus), say=reporter.say)
    reporter.cell_started(cell.label, 1, 1)

    def progress(what: str, done: int, total: int) -> None:
        reporter.progress(ProgressEvent(what=what, done=done, total=total))

    written = _write(config, cell.resolved(), model, out, progress)
    files = [written] if written.is_file() else [file for file in written.iterdir() if file.is_file()]
    return Exported(written, cell.label, sum(file.stat().st_size for file in files))


def find_cell(config: RunConfig, label: str | None, to: str) -> Backend:
    """The cell of a configuration that has weights in a format, by its label where there are several.

    Raises:
        QbenchError: there is no such format; or no such cell, or not one.
    """
    if to not in FORMATS:
        raise QbenchError(f"--to {to}: no such format (there are: {', '.join(FORMATS)})")
    chosen = plan.select(config, [label] if label else (), option="--cell")
    found = [cell for cell in chosen if cell.kind == to]
    if not found:
        held = f"{label} is {chosen[0].kind}" if label else f"there are {', '.join(cell.kind for cell in chosen)}"
        raise QbenchError(f"backends: {held}; only {to} cells are exported to {to}, add `- kind: {to}`")
    if len(found) > 1:
        raise QbenchError(f"backends: several are {to}; name one with --cell: {', '.join(c.label for c in found)}")
    return found[0]


def check_out(out: Path, *, force: bool) -> None:
    """Make sure that nothing of the user's is mixed with what is written.

    Raises:
        QbenchError: `out` is no folder, or holds something and may not be written to.
    """
    if out.exists() and not out.is_dir():
        raise QbenchError(f"--out {out}: is a file; choose a folder")
    if out.exists() and any(out.iterdir()) and not force:
        raise QbenchError(f"--out {out}: is not empty; write into it with --force, or choose another folder")


def _write(config: RunConfig, cell: Backend, model: Path, out: Path, progress: Callable[[str, int, int], None]) -> Path:
    """Torch is imported only here, after everything else was found right."""
    with quiet_libraries():
        import torch

        from qbench.backends.base import import_backend
        from qbench.model import calibration
        from qbench.model.load import LoadOptions, resolve_device, resolve_dtype

        module: Any = import_backend(cell)
        writer: Any = _import(FORMATS[cell.kind], cell)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    options = LoadOptions(
        folder=model,
        device=device,
        dtype=dtype,
        work=out,
        trust_remote_code=config.model.trust_remote_code,
        progress=progress,
    )
    if cell.makes_checkpoint:
        facts = fingerprint.checkpoint_facts(
            config, cell, content.fingerprint(model), device=device.type, dtype=str(dtype).removeprefix("torch.")
        )
        text = calibration.prepare(config.calibration, config.model, config.seed) if cell.calibrates else None
        entry, _ = checkpoints.obtain(
            facts,
            config.model.name,
            lambda folder: float(module.quantize(options, cell, text, folder)),
            lambda text: progress(text, 0, 1),
        )
        cell = cell.with_checkpoint(entry.folder)
    written: Path = writer.export(options, cell, config.model.name, out)
    return written


def _import(module: str, cell: Backend) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise QbenchError(f"backends.{cell.label}: {error}; `{cell.install}` installs what it needs") from error
