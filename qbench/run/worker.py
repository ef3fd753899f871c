"""The child process of one cell: `python -m qbench.run.worker OUT_DIR`, with the job on standard input
(`qbench.run.job`).

Loads the model once, takes every measure on it and appends each row to OUT_DIR/events.jsonl the moment it exists. It
always ends with a row of `cells.csv`, whatever goes wrong, as long as Python itself lives; what happens when it does
not is the runner's to say. Imports only what its cell needs.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from qbench.backends.base import BackendModule, LoadedModel, QuantizingModule, import_backend
from qbench.config import Backend
from qbench.config.measures import Measure
from qbench.config.resolve import decode_mode
from qbench.errors import describe_fault
from qbench.machine import bandwidth
from qbench.measure import memory
from qbench.measure.base import Context, Reference
from qbench.measure.memory import ResidentPeak
from qbench.model import calibration
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, resolve_device, resolve_dtype
from qbench.records.rows import MemoryRow, Row, ThroughputRow
from qbench.run import checkpoints, fingerprint
from qbench.run.events import EventLog
from qbench.run.fingerprint import CELL
from qbench.run.job import Job, cell_row, receive


class Cell:
    """One cell being measured. `known` gathers the columns of its row as they become known."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job = job
        self._out = out
        self._log = EventLog(out / "events.jsonl")
        self._known: dict[str, Any] = {}
        self._resident: ResidentPeak

    def run(self) -> None:
        """Measure, and end with the cell's row."""
        try:
            self._measure(self._load())
            self._known.setdefault("status", "ok")
        except ImportError as error:
            traceback.print_exc()
            remedy = f"`{self._job.backend.install}` installs what it needs"
            self._known |= {"status": "unavailable", "error": f"{type(error).__name__}: {error}; {remedy}"}
        except Exception as error:
            traceback.print_exc()
            status, reason = describe_fault(error)
            self._known |= {"status": status, "error": reason}
        self._log.unit(CELL, self._job.units[CELL], [cell_row(self._job.config, self._job.backend, **self._known)])

    def _load(self) -> LoadedModel:
        job, config = self._job, self._job.config
        if config.threads:
            torch.set_num_threads(config.threads)
        device = resolve_device(config.device)
        self._known |= {"device": device_name(device), "threads": torch.get_num_threads()}
        self._log.progress("importing the backend", 0, 1)
        backend = import_backend(job.backend)
        calibrated = None
        if job.backend.calibrates:
            calibrated = calibration.prepare(config.calibration, config.model, config.seed)
            self._known["calibration_sha256"] = calibrated.sha256
        options = LoadOptions(
            folder=job.folder,
            device=device,
            dtype=resolve_dtype(config.dtype, device),
            work=self._out,
            trust_remote_code=config.model.trust_remote_code,
            spread=config.device_map == "auto",
        )
        if device.type == "cpu":
            self._known["read_bytes_per_s"] = bandwidth.of_host().bytes_per_s
        self._resident = resident = ResidentPeak()
        settings = self._quantized(backend, options, calibrated)
        self._log.progress("loading", 0, 1)
        started = time.perf_counter()
        loaded = backend.load(options, settings, calibrated)
        elapsed = time.perf_counter() - started
        self._known |= {
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "kernel": loaded.kernel,
            "quantized_layers": len(loaded.quantized),
            "expected_layers": len(loaded.expected),
            "lm_head_bits": loaded.lm_head_bits,
            "load_s": elapsed - (loaded.quantize_s or 0.0),
            "weight_bytes": loaded.weight_bytes,
            "effective_bits_per_weight": loaded.effective_bits_per_weight,
            "load_peak_bytes": load_peak_bytes(loaded.devices, resident),
        }
        if loaded.quantize_s is not None:
            self._known["quantize_s"] = loaded.quantize_s
        loaded.check()
        gc.collect()
        resident.restart()
        return loaded

    def _quantized(self, backend: BackendModule, options: LoadOptions, calibrated: Calibration | None) -> Backend:
        """The cell's settings, with the checkpoint of the cache that they describe if there is to be one."""
        config, settings = self._job.config, self._job.backend
        if not (config.cache and settings.quantization) or getattr(settings, "checkpoint", None) is not None:
            return settings
        facts = fingerprint.checkpoint_facts(
            config,
            settings,
            self._job.model_fingerprint,
            device=options.device.type,
            dtype=str(options.dtype).removeprefix("torch."),
        )

        def make(folder: Path) -> float:
            return cast(QuantizingModule, backend).quantize(options, settings, calibrated, folder, self._log.progress)

        entry, found = checkpoints.obtain(facts, config.model.name, make, lambda text: self._log.progress(text, 0, 1))
        gc.collect()
        self._known |= {"cached": found, "quantize_s": entry.manifest.quantize_s}
        return type(settings).model_validate({**settings.model_dump(), "checkpoint": str(entry.folder)})

    def _measure(self, loaded: LoadedModel) -> None:
        """Every measure that the configuration asks for: the keys of `measure:` are the names of their modules."""
        context = Context(
            identity=self._job.identity,
            emit=self._emit_memory,
            progress=self._log.progress,
            seed=self._job.config.seed,
            answers=self._job.answers,
            measures=self._job.config.measure,
            reference=self._reference(),
        )
        memory.measure(loaded, context.measures.memory, context)
        if timed := context.measures.throughput:
            self._known["decode_mode"] = decode_mode(
                timed.decode, loaded.device.type, device_map_auto=len(loaded.devices) > 1, kv_cache=timed.kv_cache
            )
        if loaded.device.type == "cpu":
            self._known["peak_rss_bytes"] = self._resident.bytes()
        for name, settings in context.measures.of(self._job.backend).items():
            if name != "memory" and self._job.wants(name):
                self._take(name, settings, loaded, context)

    def _take(self, name: str, settings: Measure, loaded: LoadedModel, context: Context) -> None:
        """One measure, or what is missing of it."""
        journal = self._out / "journal" / f"{name}-{self._job.units[CELL]}.jsonl"
        pending: list[Row] = []

        def emit(*rows: Row, unit: str = "") -> None:
            for row in rows:
                self._note(row)
            if unit:
                self._log.unit(f"{name}/{unit}", self._job.units[f"{name}/{unit}"], rows)
            else:
                pending.extend(rows)

        own = dataclasses.replace(
            context, emit=emit, wants=lambda unit: f"{name}/{unit}" in self._job.missing, journal=journal
        )
        try:
            importlib.import_module(f"qbench.measure.{name}").measure(loaded, settings, own)
        except Exception:
            if pending:
                self._log.unit(name, self._job.units[name], pending, complete=False)
            raise
        if name in self._job.units:
            self._log.unit(name, self._job.units[name], pending)
        for file in journal.parent.glob(f"{name}-*.jsonl"):
            file.unlink()

    def _reference(self) -> Reference | None:
        job, cell = self._job, self._job.config.reference
        if cell is None:
            return None
        return Reference(cell.label, cell.label == job.label, job.reference, job.model_fingerprint)

    def _emit_memory(self, *rows: Row, unit: str = "") -> None:
        for row in rows:
            if isinstance(row, MemoryRow):
                self._known["peak_memory_bytes"] = row.peak_memory_bytes
                self._known["peak_memory_per_device"] = row.peak_memory_per_device

    def _note(self, row: Row) -> None:
        """What a row says of the cell as a whole."""
        if isinstance(row, ThroughputRow) and row.status != "ok":
            self._known |= {"status": row.status, "error": f"batch {row.batch_size}: {row.error}"}


def device_name(device: torch.device) -> str:
    """`cpu`, or the name that the driver gives the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_peak_bytes(devices: Sequence[torch.device], resident: ResidentPeak) -> int:
    """Peak over loading and quantizing: allocated on CUDA, summed over its devices; resident elsewhere."""
    if devices[0].type == "cuda":
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return resident.bytes()


def main() -> None:
    """Read the job and measure its cell."""
    Cell(Job.model_validate_json(receive()), Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
