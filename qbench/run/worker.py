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
from pathlib import Path
from typing import Any, cast

import torch

from qbench.backends.base import BackendModule, QuantizingModule, import_backend
from qbench.config import Backend
from qbench.config.measures import Measure
from qbench.config.resolve import device_type
from qbench.config.trials import start_of
from qbench.engine.base import Capability, Engine
from qbench.engine.torch.bandwidth import copy_bytes_per_s
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import NotFiniteError, QbenchError, UnavailableError, describe_fault
from qbench.machine import bandwidth
from qbench.machine.resident import ResidentPeak
from qbench.measure import memory
from qbench.measure.base import Context, Reference, lacking, too_deep
from qbench.model import calibration
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, resolve_device, resolve_dtype
from qbench.records.rows import MemoryRow, Row, Status
from qbench.run import checkpoints, fingerprint, starts
from qbench.run.events import EventLog, read_units
from qbench.run.fingerprint import CELL
from qbench.run.job import Job, cell_row, receive

ABOUT_COLUMNS = (
    *("dtype", "kernel", "quantized_layers", "expected_layers", "lm_head_bits", "weight_bytes"),
    *("effective_bits_per_weight", "quantize_s"),
)
"""Columns of `cells.csv` that an engine's `About` fills."""


class Cell:
    """One cell being measured. `known` gathers the columns of its row as they become known."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job = job
        self._out = out
        self._log = EventLog(out / "events.jsonl")
        self._known: dict[str, Any] = {}
        self._resident: ResidentPeak
        self._engine: Engine | None = None

    def run(self) -> None:
        """Measure, and end with the cell's row, or, in a later start, with what went wrong."""
        try:
            engine = self._load()
        except ImportError as error:
            traceback.print_exc()
            remedy = f"`{self._job.backend.install}` installs what it needs"
            self._known |= {"status": "unavailable", "error": f"{type(error).__name__}: {error}; {remedy}"}
        except Exception as error:
            traceback.print_exc()
            self._known |= dict(zip(("status", "error"), describe_fault(error), strict=True))
        else:
            self._measure(engine)
            self._known.setdefault("status", "ok")
        if self._job.start:
            self._end_later_start()
        else:
            self._log.unit(CELL, self._job.units[CELL], [cell_row(self._job.config, self._job.backend, **self._known)])
        if close := getattr(self._engine, "close", None):
            close()

    def _end_later_start(self) -> None:
        """The cell's row is that of its first start."""
        if self._known["status"] != "ok":
            starts.keep_failure(self._log, self._out, self._job, self._known["status"], self._known["error"])

    def _load(self) -> Engine:
        job, config = self._job, self._job.config
        if config.threads:
            torch.set_num_threads(config.threads)
        device = resolve_device(config.device)
        self._known |= {"device": device_name(device), "threads": torch.get_num_threads()}
        self._log.progress("importing the backend", 0, 1)
        backend = import_backend(job.backend)
        if reason := job.backend.unavailable_on(device_type(device.type)):
            raise UnavailableError(f"backends.{job.backend.label}: {reason}")
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
            device_map_auto=config.device_map == "auto",
        )
        self._known["read_bytes_per_s"] = read_bytes_per_s(device)
        self._resident = ResidentPeak()
        if prepare := getattr(backend, "prepare", None):
            prepare(options, job.backend, self._log.progress)
        settings = self._quantized(backend, options, calibrated)
        self._log.progress("loading", 0, 1)
        started = time.perf_counter()
        loaded = backend.load(options, settings, calibrated)
        elapsed = time.perf_counter() - started
        if isinstance(loaded, LoadedModel):
            engine: Engine = TorchEngine(loaded, job.backend.kv_cache)
        else:
            engine = loaded
        self._engine = engine
        if job.backend.kv_cache != "16bit" and engine is loaded:
            raise QbenchError(f"backends.{job.backend.label}.kv_cache: only models of transformers take it; remove it")
        about = engine.about
        self._go_on_with(about.kernel)
        columns = {name: getattr(about, name) for name in ABOUT_COLUMNS}
        self._known |= {name: value for name, value in columns.items() if value is not None}
        if job.backend.weight_bits == 16 and about.effective_bits_per_weight == 32:
            self._known["bits"] = 32
        self._known["load_s"] = elapsed - (about.quantize_s or 0.0)
        if Capability.REQUESTS in engine.can:  # of this process, which only asks
            self._known |= {"device": about.device, "threads": None, "read_bytes_per_s": None}
        else:
            self._known["load_peak_bytes"] = load_peak_bytes(loaded, self._resident)
        if isinstance(loaded, LoadedModel):
            size = "choose a group_size that divides every in_features, or another backend"
            loaded.check(size if hasattr(job.backend, "group_size") else "use another backend")
        gc.collect()
        self._resident.restart()
        return engine

    def _go_on_with(self, kernel: str) -> None:
        """What another kernel measured before is measured again: two of them must not stand in one table.

        Raises:
            QbenchError: this is a later start, and the first had another kernel.
        """
        kept = read_units(self._out / "events.jsonl")
        first = kept[CELL].kernel if CELL in kept else None
        if self._job.start and first not in (None, kernel):
            raise QbenchError(
                f"this start multiplies by {kernel}, the first did by {first}; name the kernel in the configuration, "
                "or start over with --fresh"
            )
        others = {name for name, unit in kept.items() if unit.kernel not in (None, kernel)}
        if others:
            self._log.progress(f"measuring again what another kernel than {kernel} measured", 0, 1)
        own = [name for name in self._job.units if start_of(name) == self._job.start]
        missing = tuple(name for name in own if name in others or name in self._job.missing)
        self._job = self._job.model_copy(update={"missing": missing})
        self._log.kernel = kernel

    def _quantized(self, backend: BackendModule, options: LoadOptions, calibrated: Calibration | None) -> Backend:
        """The cell's settings, with the checkpoint of the cache that they describe if there is to be one."""
        config, settings = self._job.config, self._job.backend
        if not (config.cache and settings.makes_checkpoint):
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
        return settings.with_checkpoint(entry.folder)

    def _measure(self, engine: Engine) -> None:
        """Every measure that the configuration asks for: the keys of `measure:` are the names of their modules.

        One that fails leaves the others running, and is measured again by the next run.
        """
        context = Context(
            identity=self._job.identity,
            emit=self._emit_memory,
            progress=self._log.progress,
            seed=self._job.config.seed,
            answers=self._job.answers,
            measures=self._job.config.measure,
            reference=self._reference(),
            start=self._job.start,
        )
        measures = context.measures.of(self._job.backend)
        if self._job.start:
            measures = {"throughput": measures["throughput"]}
        modules = {name: importlib.import_module(f"qbench.measure.{name}") for name in measures}
        refusals = {name: lacking(engine, module.NEEDS, measures[name]) for name, module in modules.items()}
        unsupported = [f"{name}: {reason}" for name, reason in refusals.items() if reason]
        failures: dict[str, tuple[Status, str]] = {}
        meaningless = False
        for name, settings in measures.items():
            if refusals[name]:
                self._pass_over(name)
                continue
            if reason := self._leave_out(name, settings, engine):
                unsupported.append(f"{name}: {reason}")
            try:
                if timed := context.measures.throughput if name == "throughput" else None:
                    # Also where all trials are kept from before.
                    self._known["decode_mode"] = engine.decode_mode(timed.decode, timed.kv_cache)
                if name == "memory":
                    memory.measure(engine, context.measures.memory, context)
                elif self._job.wants(name):
                    self._take(name, settings, engine, context)
            except Exception as error:
                traceback.print_exc()
                failures[name] = describe_fault(error)
                meaningless |= isinstance(error, NotFiniteError)
            own = engine.about.gpu_uuid is None and Capability.REQUESTS not in engine.can
            if name == "memory" and own:
                self._known["peak_rss_bytes"] = self._resident.bytes()
        self._known["unsupported"] = "; ".join(unsupported) or None
        taken = [name for name in measures if not refusals[name]]
        self._judge(failures, meaningless or len(failures) == len(taken))

    def _judge(self, failures: dict[str, tuple[Status, str]], whole: bool) -> None:
        """A cell of which something could be measured is ok, whatever failed beside it, unless the `whole` failed."""
        reasons = "; ".join(f"{name}: {reason}" for name, (_, reason) in failures.items())
        self._known["failed"] = reasons or None
        if failures and whole:
            status, _ = next(iter(failures.values()))
            self._known |= {"status": status, "error": reasons}

    def _pass_over(self, name: str) -> None:
        """What an engine cannot measure is done, without rows."""
        for unit, key in self._job.units.items():
            if unit == name or unit.startswith(f"{name}/"):
                self._log.unit(unit, key, [])

    def _leave_out(self, name: str, settings: Measure, engine: Engine) -> str:
        """Why some units of a measure are done without rows, if they are."""
        reason, units = too_deep(engine, settings)
        for unit in units:
            whole = f"{name}/{unit}"
            if whole in self._job.missing:
                self._log.unit(whole, self._job.units[whole], [])
        left = tuple(unit for unit in self._job.missing if unit.removeprefix(f"{name}/") not in units)
        self._job = self._job.model_copy(update={"missing": left})
        return reason

    def _take(self, name: str, settings: Measure, engine: Engine, context: Context) -> None:
        """One measure, or what is missing of it."""
        same = fingerprint.key({"cell": self._job.units[CELL], "kernel": engine.about.kernel})
        journal = self._out / "journal" / f"{name}-{same}.jsonl"
        pending: list[Row] = []

        def emit(*rows: Row, unit: str = "") -> None:
            if unit:
                self._log.unit(f"{name}/{unit}", self._job.units[f"{name}/{unit}"], rows)
            else:
                pending.extend(rows)

        own = dataclasses.replace(
            context, emit=emit, wants=lambda unit: f"{name}/{unit}" in self._job.missing, journal=journal
        )
        try:
            importlib.import_module(f"qbench.measure.{name}").measure(engine, settings, own)
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


def device_name(device: torch.device) -> str:
    """`cpu`, or the name that the driver gives the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_bytes_per_s(device: torch.device) -> float | None:
    """How fast the device moves bytes of its memory right now; None where that cannot be measured."""
    if device.type == "cuda":
        return copy_bytes_per_s(device)
    return bandwidth.of_host().bytes_per_s


def load_peak_bytes(loaded: LoadedModel | Engine, resident: ResidentPeak) -> int:
    """Peak over loading and quantizing: allocated on CUDA, summed over its devices; resident elsewhere."""
    if isinstance(loaded, LoadedModel) and loaded.device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(device) for device in loaded.devices)
    return resident.bytes()


def main() -> None:
    """Read the job and measure its cell."""
    Cell(Job.model_validate_json(receive()), Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
