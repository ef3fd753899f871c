"""What a worker does with its cell: `Cell`.

Loads the model once, takes every measure on it and appends each row to OUT_DIR/events.jsonl the moment it exists. It
always ends with a row of `cells.csv`, whatever goes wrong, as long as Python itself lives; what happens when it does
not is the runner's to say. Imports only what its cell needs.
"""

from __future__ import annotations

import dataclasses
import importlib
import traceback
from pathlib import Path
from typing import Any

import torch

from qbench.config.base import Measure
from qbench.config.trials import start_of
from qbench.engine.base import Capability, Engine
from qbench.engine.torch.bandwidth import copy_bytes_per_s
from qbench.errors import NotFiniteError, QbenchError, describe_fault
from qbench.machine import bandwidth
from qbench.machine.resident import ResidentPeak
from qbench.measure import memory
from qbench.measure.base import Context, Reference, lacking, too_deep
from qbench.records.rows import MemoryRow, Row, Status
from qbench.run import fingerprint, starts
from qbench.run.events import EventLog, read_units
from qbench.run.fingerprint import CELL
from qbench.run.job import Job, cell_row
from qbench.run.loading import Loading


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
        job = self._job
        loading = Loading(
            job.config,
            job.backend,
            folder=job.folder,
            model_fingerprint=job.model_fingerprint,
            work=self._out,
            progress=self._log.progress,
            known=self._known,
        )
        options = loading.prepare()
        self._known["read_bytes_per_s"] = read_bytes_per_s(options.device)
        engine = self._engine = loading.load()
        self._go_on_with(engine.about.kernel)
        if Capability.REQUESTS in engine.can:  # of this process, which only asks
            self._known |= {"device": engine.about.device, "threads": None, "read_bytes_per_s": None}
        loading.check()
        self._resident = loading.resident
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
            folder=self._job.folder,
            trust_remote_code=self._job.config.model.trust_remote_code,
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


def read_bytes_per_s(device: torch.device) -> float | None:
    """How fast the device moves bytes of its memory right now; None where that cannot be measured."""
    if device.type == "cuda":
        return copy_bytes_per_s(device)
    return bandwidth.of_host().bytes_per_s
