"""What runs on a node of a cluster: one cell, in a folder that is removed afterwards, told of piece by piece.

Nothing here imports Ray: `qbench.run.ray.executor` makes an actor of `NodeCell`. The cell itself runs as it does on one
machine, by `LocalExecutor`: a process of its own, with its time limit, that ends with whoever started it.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from qbench import __version__
from qbench.errors import QbenchError, describe_fault
from qbench.machine import environment
from qbench.machine.environment import Environment
from qbench.measure import divergence
from qbench.model import content, find
from qbench.run import fingerprint
from qbench.run.executor import Ending
from qbench.run.job import Job
from qbench.run.local import GRACE_S, LocalExecutor

PIECE = 2**23
"""Bytes of events or log that are sent at once."""

PREFIX = "qbench-cell-"
"""Names of the folders in which cells run begin with this."""

INHERITED = ("OMP_NUM_THREADS",)
"""Environment variables that a cell has as its runner has them: Ray sets this one to the CPUs that are asked for."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Who a node is, and what it would run."""

    host: str
    version: str
    code: str
    """See `qbench.run.fingerprint.source_hash`."""
    environment: Environment


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that a cell needs from its runner, beside the model and the files that the configuration names."""

    job: str
    """JSON of the `Job`."""
    version: str
    code: str
    """See `qbench.run.fingerprint.source_hash`."""
    machine: Environment
    """The runner's: with it, random weights come out of the same dtype everywhere."""
    cwd: str
    """The runner's working folder, where relative paths of the configuration begin."""
    variables: dict[str, str | None]
    """Environment variables that the cell's worker has; None: it has none of that name."""
    files: dict[str, bytes]
    """What is in the cell's folder already."""
    answers: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class News:
    """What a cell has written since the last look."""

    events: bytes
    log: bytes
    over: bool
    """The worker has ended, and nothing will be added."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a cell leaves behind, beside its events and its log."""

    ending: Ending | None
    files: dict[str, bytes]
    answers: dict[str, bytes]
    reference: dict[str, bytes]
    """Given by the cell whose log-probabilities the others are compared with."""


class NodeFolder:
    """A folder in the node's place for temporary files, for as long as this process lives or until `remove`.

    A process that is killed leaves its folder, which may hold a checkpoint of gigabytes. The system lets go of its
    lock, by which the next one that makes a folder knows to remove it.
    """

    def __init__(self) -> None:
        place, name = Path(tempfile.gettempdir()), f"{PREFIX}{platform.node()}-"  # nodes may share the place
        for lock in place.glob(f"{name}*.lock"):
            with suppress(Timeout, OSError), FileLock(lock, blocking=False):  # in use, or another user's
                _remove(lock)
        self.path = place / f"{name}{uuid.uuid4().hex}"
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        self._lock.acquire()
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove it with all that it holds."""
        _remove(Path(self._lock.lock_file))
        self._lock.release()


def _remove(lock: Path) -> None:
    """The folder before its lock, so that what is left of it is tried again."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    if not lock.with_suffix("").exists():
        lock.unlink(missing_ok=True)


def facts() -> NodeFacts:
    """Those of the machine that this is called on."""
    return NodeFacts(platform.node(), __version__, fingerprint.source_hash(), environment.detect())


class NodeCell:
    """One cell. Its methods are called one after another: `start`, `news` until it is over, `results`, `close`."""

    def __init__(self) -> None:
        self._executor = LocalExecutor()
        self._thread: threading.Thread | None = None
        self._ending: Ending | None = None
        self._job: Job
        self._folder: NodeFolder | None = None
        self._out: Path
        self._log: Path

    def start(self, parcel: Parcel, reference: dict[str, bytes]) -> str | None:
        """Begin, unless the node would measure something else: then the reason."""
        try:
            self._job = self._resolve(parcel, reference)
        except QbenchError as error:
            return str(error)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return None

    def news(self, events_from: int, log_from: int) -> News:
        """What is new behind these positions, in bytes, at most `PIECE` of each."""
        ended = self._thread is None or not self._thread.is_alive()
        events, log = _read(self._out / "events.jsonl", events_from), _read(self._log, log_from)
        return News(events, log, over=ended and len(events) < PIECE and len(log) < PIECE)

    def results(self) -> Results:
        """Everything to keep. A checkpoint that a backend made in a folder below its cell's is not."""
        job = self._job
        reference = job.config.reference
        own = reference is not None and reference.label == job.label and job.reference.is_file()
        return Results(
            ending=self._ending,
            files=contents(self._out, {"events.jsonl"}),
            answers=contents(job.answers),
            reference={file.name: file.read_bytes() for file in divergence.files(job.reference)} if own else {},
        )

    def close(self) -> None:
        """End the worker if it runs, and remove the folder."""
        self._executor.stop()
        if self._thread:
            self._thread.join(3 * GRACE_S)
        if self._folder:
            self._folder.remove()

    def _resolve(self, parcel: Parcel, reference: dict[str, bytes]) -> Job:
        """The job with this node's paths.

        Raises:
            QbenchError: the node has another version, or another model.
        """
        check_version(parcel.version, parcel.code, facts())
        set_variables(parcel.variables)
        if os.path.isdir(parcel.cwd):
            os.chdir(parcel.cwd)
        job = Job.model_validate_json(parcel.job)
        model = find.find_model(job.config, cuda=bool(parcel.machine.gpus), say=print)
        if content.fingerprint(model) != job.model_fingerprint:
            raise QbenchError(f"{model} on {platform.node()} is not the model that the runner has; copy it again")
        self._folder = NodeFolder()
        place = self._folder.path
        self._out, self._log = place / "cell", place / "log"
        own = {"folder": model, "answers": place / "answers", "reference": place / "reference" / job.reference.name}
        for folder, files in ((self._out, parcel.files), (own["answers"], parcel.answers)):
            unpack(folder, files)
        if reference:
            unpack(own["reference"].parent, reference)
        return job.model_copy(update=own)

    def _run(self) -> None:
        try:
            self._ending = self._executor.run(self._job, self._out, self._log, lambda event: None)
        except Exception as error:
            self._ending = Ending(*describe_fault(error))


def check_version(version: str, code: str, node: NodeFacts) -> None:
    """Refuse a node that would run other code than the runner's.

    Raises:
        QbenchError: its version or its code differs.
    """
    if (node.version, node.code) != (version, code):
        what = f"qbench {node.version}" if node.version != version else f"other code of qbench {version}"
        raise QbenchError(
            f"{node.host} has {what} (code {node.code[:12]}), the runner has {version} (code {code[:12]}); "
            "install the same on every node"
        )


def set_variables(variables: Mapping[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def contents(folder: Path, without: set[str] | frozenset[str] = frozenset()) -> dict[str, bytes]:
    """The files directly in a folder, by name; of a missing folder, none."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in without}


def unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, written in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(written)
        partial.replace(folder / name)


def _read(path: Path, offset: int) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PIECE)
