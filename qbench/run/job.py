"""What a worker is told, one line of JSON for one cell, and the pipe through which it is told.

The line is kept nowhere: it holds full paths. After it nothing comes for as long as the runner lives. The end of the
pipe means that the runner is gone, killed perhaps, and then the worker and all that it has started go, too: an orphan
would hold its memory and disturb whatever is measured next.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict

from qbench.config import Backend, RunConfig, backend_kinds
from qbench.records.rows import CellRow, Identity

BLOCK_BYTES = 1 << 16
"""Of what is read from the pipe at once."""


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
    """See `qbench.model.content.fingerprint`."""
    units: dict[str, str]
    """Key by name of every unit of the cell, see `qbench.run.fingerprint`."""
    missing: tuple[str, ...]
    """Names of those to measure."""
    start: int = 0
    """Which process of the cell this is: the first takes every measure, later ones the throughput once more."""

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
    if cell.worker_python is None:
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
            "kv_cache": backend.kv_cache,
            **fields,
        }
    )


def send(line: str, pipe: IO[bytes]) -> None:
    """Write a line, and leave the pipe open.

    In a thread: a worker that does not read must not keep its runner from seeing that it takes too long.
    """
    threading.Thread(target=_write, args=(pipe, line.encode() + b"\n"), name="job", daemon=True).start()


def _write(pipe: IO[bytes], data: bytes) -> None:
    # A worker that has ended before it read its job is told of by how it ended.
    with contextlib.suppress(OSError, ValueError):
        while data:
            data = data[pipe.write(data) :]


def receive() -> bytes:
    """The line on standard input; from then on this process group ends when the pipe does.

    Standard input is empty afterwards, for libraries and for what they start. Ends the process if there is no line.
    """
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(pipe, BLOCK_BYTES)
        if not data:
            sys.exit("qbench.run.worker: no job on standard input; `qbench run` starts workers")
        line += data
    threading.Thread(target=_end_with, args=(pipe,), name="lifeline", daemon=True).start()
    return line


def _end_with(pipe: int) -> None:
    while os.read(pipe, BLOCK_BYTES):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
