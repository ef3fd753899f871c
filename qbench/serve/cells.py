"""Cells of a configuration, loaded to be served.

All of them are in this process, and take turns in one thread (`qbench.serve.batching`): they share the cores or the GPU
anyway, and nothing has to be sent between processes for a token. A cell that asks for another interpreter (`python:`)
cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.config import Backend
from qbench.engine.base import Capability, Engine, Streaming
from qbench.errors import QbenchError
from qbench.model import content, find
from qbench.model.load import load_tokenizer
from qbench.plan.cells import Plan
from qbench.run.cells import Reporter
from qbench.run.events import ProgressEvent
from qbench.run.loading import Loading
from qbench.serve.batching import Batch, OneAtATime, Queue
from qbench.serve.model import Model, ending_tokens

CONTEXT = 4096
"""Tokens of prompt and answer, of models that allow more, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A cell that is ready, and the queue that its loop has to take care of."""

    model: Model
    queue: Queue


def check(cells: tuple[Backend, ...]) -> None:
    """Refuse cells that cannot be loaded in this process.

    Raises:
        QbenchError: one asks for another interpreter, or is a server already.
    """
    for cell in cells:
        if cell.engine == "server":
            raise QbenchError(f"--cell {cell.label}: is a server already; ask it at its own address")
        if cell.worker_python is not None:
            raise QbenchError(
                f"backends.{cell.label}.python: qbench serve loads cells in its own process; start it with "
                f"{cell.python} -m qbench serve, without `python:`"
            )


def load(plan: Plan, reporter: Reporter, work: Path, *, sequences: int, context: int | None) -> dict[str, Loaded]:
    """The cells of a plan by label.

    Args:
        work: a folder for checkpoints that backends write.
        sequences: requests to a cell that compute at once.
        context: the most tokens of prompt and answer; the model's own, up to `CONTEXT`, if None.

    Raises:
        QbenchError: the model cannot be found, or a cell not be loaded.
    """
    folder = find.find_model(plan.config, cuda=bool(plan.machine.gpus), say=reporter.say)
    fingerprint = content.fingerprint(folder)
    found = {}
    for number, cell in enumerate(plan.cells, start=1):
        reporter.cell_started(cell.label, number, len(plan.cells))
        own = work / cell.label
        own.mkdir()
        loading = Loading(
            plan.config,
            cell,
            folder=folder,
            model_fingerprint=fingerprint,
            work=own,
            progress=lambda what, done, total: reporter.progress(ProgressEvent(what=what, done=done, total=total)),
            known={},
        )
        engine = _loaded(loading, cell)
        found[cell.label] = _ready(engine, cell, load_tokenizer(loading.options), folder, sequences, context)
    return found


def _loaded(loading: Loading, cell: Backend) -> Engine:
    try:
        loading.prepare()
        engine = loading.load()
    except ImportError as error:
        reason = f"{type(error).__name__}: {error}"
        raise QbenchError(f"backends.{cell.label}: {reason}; `{cell.install}` installs what it needs") from error
    loading.check()
    return engine


def _ready(engine: Engine, cell: Backend, tokenizer: Any, folder: Path, sequences: int, context: int | None) -> Loaded:
    about = engine.about
    if context is not None and about.context is not None and context > about.context:
        raise QbenchError(f"--context {context}: the model's has {about.context} tokens; set it to at most as many")
    length = context or min(about.context or CONTEXT, CONTEXT)
    generation = folder / "generation_config.json"
    ends = ending_tokens(find.read_json(generation) if generation.is_file() else {}, tokenizer)
    queue: Queue
    if Capability.STREAM in engine.can and isinstance(engine, Streaming):
        queue = Batch(engine.stepper(sequences, length), sequences, ends)
    else:
        queue = OneAtATime(engine, ends)
    names = ("kernel", "dtype", "device", "weight_bytes", "effective_bits_per_weight")
    facts = {"kind": cell.kind, **{name: getattr(about, name) for name in names}}
    return Loaded(Model(engine, queue, tokenizer, length, facts), queue)
