"""How the engine of a cell is loaded: by a worker that measures it, and by a server that lets others ask it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from qbench.backends.base import BackendModule, QuantizingModule, import_backend
from qbench.config import Backend, RunConfig
from qbench.config.resolve import device_type
from qbench.engine.base import Capability, Engine
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError, UnavailableError
from qbench.machine.resident import ResidentPeak
from qbench.model import calibration
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, resolve_device, resolve_dtype
from qbench.run import checkpoints, fingerprint

ABOUT_COLUMNS = (
    *("dtype", "kernel", "quantized_layers", "expected_layers", "lm_head_bits", "weight_bytes"),
    *("effective_bits_per_weight", "quantize_s"),
)
"""Columns of `cells.csv` that an engine's `About` fills."""


class Loading:
    """One cell being loaded: `prepare`, `load` and `check`, in this order.

    Args:
        config: the run's.
        cell: one of its backends.
        folder: the model's local folder.
        model_fingerprint: see `qbench.model.content.fingerprint`.
        work: a folder of the cell's own, for checkpoints that its backend writes.
        progress: told what is done, how much of it, and of how much.
        known: gathers the columns of the cell's row as they become known.
    """

    options: LoadOptions
    """Known once it is prepared."""
    resident: ResidentPeak
    """Runs from before the model is loaded."""

    def __init__(
        self,
        config: RunConfig,
        cell: Backend,
        *,
        folder: Path,
        model_fingerprint: str,
        work: Path,
        progress: Callable[[str, int, int], None],
        known: dict[str, Any],
    ) -> None:
        self._config, self._cell, self._folder, self._work = config, cell, folder, work
        self._model_fingerprint = model_fingerprint
        self._progress, self._known = progress, known
        self._backend: BackendModule
        self._calibrated: Calibration | None = None
        self._loaded: LoadedModel | Engine

    def prepare(self) -> LoadOptions:
        """Everything that comes before the model: the device, the backend's libraries, the calibration texts.

        Raises:
            ImportError: a library is missing.
            QbenchError: the device is, or the backend does not work on it.
        """
        config, cell = self._config, self._cell
        if config.threads:
            torch.set_num_threads(config.threads)
        device = resolve_device(config.device)
        self._known |= {"device": device_name(device), "threads": torch.get_num_threads()}
        self._progress("importing the backend", 0, 1)
        self._backend = import_backend(cell)
        if reason := cell.unavailable_on(device_type(device.type)):
            raise UnavailableError(f"backends.{cell.label}: {reason}")
        if cell.calibrates:
            self._calibrated = calibration.prepare(config.calibration, config.model, config.seed)
            self._known["calibration_sha256"] = self._calibrated.sha256
        self.options = LoadOptions(
            folder=self._folder,
            device=device,
            dtype=resolve_dtype(config.dtype, device),
            work=self._work,
            trust_remote_code=config.model.trust_remote_code,
            device_map_auto=config.device_map == "auto",
            progress=self._progress,
        )
        return self.options

    def load(self) -> Engine:
        """The engine, whose checkpoint is made or found in the cache first if there is to be one."""
        self.resident = ResidentPeak()
        if prepare := getattr(self._backend, "prepare", None):
            prepare(self.options, self._cell)
        settings = self._quantized()
        self._progress("loading", 0, 1)
        started = time.perf_counter()
        loaded = self._loaded = self._backend.load(self.options, settings, self._calibrated)
        elapsed = time.perf_counter() - started
        if isinstance(loaded, LoadedModel):
            engine: Engine = TorchEngine(loaded, self._cell.kv_cache)
        elif self._cell.kv_cache == "16bit":
            engine = loaded
        else:
            raise QbenchError(f"backends.{self._cell.label}.kv_cache: only models of transformers take it; remove it")
        columns = {name: getattr(engine.about, name) for name in ABOUT_COLUMNS}
        self._known |= {name: value for name, value in columns.items() if value is not None}
        if self._cell.weight_bits == 16 and engine.about.effective_bits_per_weight == 32:
            self._known["bits"] = 32
        self._known["load_s"] = elapsed - (engine.about.quantize_s or 0.0)
        if Capability.REQUESTS not in engine.can:
            self._known["load_peak_bytes"] = load_peak_bytes(loaded, self.resident)
        return engine

    def check(self) -> None:
        """Refuse a model that is not what the cell says.

        Raises:
            QbenchError: see `qbench.engine.torch.loaded.LoadedModel.check`.
        """
        if isinstance(self._loaded, LoadedModel):
            size = "choose a group_size that divides every in_features, or another backend"
            self._loaded.check(size if hasattr(self._cell, "group_size") else "use another backend")
        gc.collect()

    def _quantized(self) -> Backend:
        """The cell's settings, with the checkpoint of the cache that they describe if there is to be one."""
        config, settings = self._config, self._cell
        if not (config.cache and settings.makes_checkpoint):
            return settings
        facts = fingerprint.checkpoint_facts(
            config,
            settings,
            self._model_fingerprint,
            device=self.options.device.type,
            dtype=str(self.options.dtype).removeprefix("torch."),
        )

        def make(folder: Path) -> float:
            module = cast(QuantizingModule, self._backend)
            return module.quantize(self.options, settings, self._calibrated, folder)

        entry, found = checkpoints.obtain(facts, config.model.name, make, lambda text: self._progress(text, 0, 1))
        gc.collect()
        self._known |= {"cached": found, "quantize_s": entry.manifest.quantize_s}
        return settings.with_checkpoint(entry.folder)


def device_name(device: torch.device) -> str:
    """`cpu`, or the name that the driver gives the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_peak_bytes(loaded: LoadedModel | Engine, resident: ResidentPeak) -> int:
    """Peak over loading and quantizing: allocated on CUDA, summed over its devices; resident elsewhere."""
    if isinstance(loaded, LoadedModel) and loaded.device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(device) for device in loaded.devices)
    return resident.bytes()
