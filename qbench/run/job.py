"""What a worker is told: one line of JSON from the runner, for one cell. It is kept nowhere: it holds full paths."""

from __future__ import annotations

import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qbench.config import Backend, RunConfig, backend_kinds
from qbench.records.rows import CellRow, Identity


class Job(BaseModel):
    """One cell of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: RunConfig
    label: str
    folder: Path
    """The model's local folder."""
    answers: Path
    """Where the cell's answers to questions are kept."""
    reference: Path
    """Where the 16-bit cell's log-probabilities are kept."""
    model_fingerprint: str
    """See `qbench.model.find.fingerprint`."""
    units: dict[str, str]
    """Key by name of every unit of the cell, see `qbench.run.fingerprint`."""
    missing: tuple[str, ...]
    """Names of those to measure."""

    @property
    def backend(self) -> Backend:
        """The configuration of this cell's backend."""
        return next(backend for backend in self.config.backends if backend.label == self.label)

    def wants(self, measure: str) -> bool:
        """Whether any unit of a measure is missing."""
        return any(name == measure or name.startswith(f"{measure}/") for name in self.missing)

    @property
    def identity(self) -> Identity:
        """The columns that say whose row it is."""
        return identity(self.config, self.backend)


def config_of(config: RunConfig, cell: Backend) -> RunConfig:
    """What a cell's worker is told of the run: another interpreter may lack the plug-ins of the other cells."""
    if cell.python is None:
        return config
    known = tuple(one for one in config.backends if one == cell or one.kind in backend_kinds())
    return config.model_copy(update={"backends": known})


def identity(config: RunConfig, backend: Backend) -> Identity:
    """The columns that every row of a cell begins with, on the machine that measures it."""
    return Identity(
        run=config.name, model=config.model.name, backend=backend.kind, label=backend.label, host=platform.node()
    )


def cell_row(config: RunConfig, backend: Backend, **fields: object) -> CellRow:
    """A row of `cells.csv`: what the configuration says of the cell, and `fields`."""
    return CellRow.model_validate(
        {
            **identity(config, backend),
            "bits": backend.weight_bits,
            "group_size": getattr(backend, "group_size", None),
            **fields,
        }
    )
