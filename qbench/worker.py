"""The child process of one cell: `python -m qbench.worker JOB.json OUT_DIR`.

Loads the model once, takes every measure on it and appends each row to OUT_DIR/events.jsonl the moment it exists. It
always ends with a row of `cells.csv`, whatever goes wrong, as long as Python itself lives; what happens when it does
not is the runner's to say. Imports only what its cell needs.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from qbench import calibration
from qbench.backends.base import LoadedModel, import_backend
from qbench.errors import describe_fault
from qbench.events import EventLog
from qbench.job import Job, cell_row
from qbench.measure.base import Context, Reference
from qbench.measure.memory import ResidentPeak
from qbench.models import LoadOptions, resolve_device, resolve_dtype
from qbench.rows import MemoryRow, Row, ThroughputRow


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
        self._log.row(cell_row(self._job.config, self._job.backend, **self._known))

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
        )
        self._log.progress("loading and quantizing" if job.backend.weight_bits < 16 else "loading", 0, 1)
        self._resident = resident = ResidentPeak()
        started = time.perf_counter()
        loaded = backend.load(options, job.backend, calibrated)
        elapsed = time.perf_counter() - started
        self._known |= {
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "kernel": loaded.kernel,
            "quantized_layers": len(loaded.quantized),
            "expected_layers": len(loaded.expected),
            "lm_head_bits": loaded.lm_head_bits,
            "load_s": elapsed - (loaded.quantize_s or 0.0),
            "quantize_s": loaded.quantize_s,
            "weight_bytes": loaded.weight_bytes,
            "effective_bits_per_weight": loaded.effective_bits_per_weight,
            "load_peak_bytes": load_peak_bytes(device, resident),
        }
        loaded.check()
        gc.collect()
        resident.restart()
        return loaded

    def _measure(self, loaded: LoadedModel) -> None:
        """Every measure that the configuration asks for: the keys of `measure:` are the names of their modules."""
        context = Context(
            identity=self._job.identity,
            emit=self._emit,
            progress=self._log.progress,
            seed=self._job.config.seed,
            answers=self._job.answers,
            measures=self._job.config.measure,
            reference=self._reference(),
        )
        for name, settings in context.measures.of(self._job.backend).items():
            importlib.import_module(f"qbench.measure.{name}").measure(loaded, settings, context)
            if name == "memory" and loaded.device.type == "cpu":
                self._known["peak_rss_bytes"] = self._resident.bytes()

    def _reference(self) -> Reference | None:
        job, cell = self._job, self._job.config.reference
        if cell is None:
            return None
        return Reference(cell.label, cell.label == job.label, job.reference, job.model_fingerprint)

    def _emit(self, row: Row) -> None:
        """Keep a row, and note what it says of the cell as a whole."""
        self._log.row(row)
        if isinstance(row, MemoryRow):
            self._known["peak_memory_bytes"] = row.peak_memory_bytes
        elif isinstance(row, ThroughputRow):
            self._known["decode_mode"] = row.decode_mode
            if row.status != "ok":
                self._known |= {"status": row.status, "error": f"batch {row.batch_size}: {row.error}"}


def device_name(device: torch.device) -> str:
    """`cpu`, or the name that the driver gives the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_peak_bytes(device: torch.device, resident: ResidentPeak) -> int:
    """Peak over loading and quantizing: allocated on CUDA, resident elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident.bytes()


def main() -> None:
    """Read the job and measure its cell."""
    job_file, out = map(Path, sys.argv[1:3])
    Cell(Job.model_validate_json(job_file.read_bytes()), out).run()


if __name__ == "__main__":
    main()
