"""What the module of a backend kind offers, and how it is found."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from qbench.config import Backend
from qbench.config.kinds import registered
from qbench.engine.base import Engine
from qbench.engine.torch.loaded import LoadedModel
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions


class BackendModule(Protocol):
    """What the module of a kind offers: one of this package, or one that is registered for it."""

    def load(self, options: LoadOptions, config: Any, calibration: Calibration | None) -> LoadedModel | Engine:
        """Load the model, quantized. `calibration` is given where the configuration `calibrates`.

        A transformers model comes back as a `LoadedModel`, which the torch engine runs; others bring an engine.
        """


class PreparingModule(BackendModule, Protocol):
    """What a module offers that has something to do once on a machine, such as compiling, before it can load."""

    def prepare(self, options: LoadOptions, config: Any) -> None:
        """Do it, where it has not been done; `options.progress` receives what and how far.

        Raises:
            UnavailableError: the machine lacks what it needs.
        """


class QuantizingModule(BackendModule, Protocol):
    """What a module offers whose backend has settings of `quantization`: a checkpoint that its `load` takes."""

    def quantize(self, options: LoadOptions, config: Any, calibration: Calibration | None, out: Path) -> float:
        """Write the quantized model into the folder `out`, and return the seconds spent quantizing."""


def import_backend(config: Backend) -> BackendModule:
    """The module that `config.kind` names.

    Raises:
        ImportError: the backend's libraries are not installed here.
    """
    found = registered(config.kind)
    assert found is not None, f"{config.kind} was valid in a configuration"
    return cast(BackendModule, importlib.import_module(found.module))
