"""Cells on this machine: a fresh interpreter for each, watched until it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qbench.config import Backend, RunConfig
from qbench.machine import environment
from qbench.machine.environment import Environment
from qbench.records.redact import Redactor
from qbench.run.events import EventReader, ProgressEvent
from qbench.run.executor import Ending
from qbench.run.job import Job, send
from qbench.run.logs import BoundedLog, PipeReader

POLL_S = 0.5
"""Seconds between two looks at a worker: rare enough not to disturb what it measures."""

GRACE_S = 5.0
"""Seconds between asking a worker to end and ending it."""


class LocalExecutor:
    """A child process a cell, in a session of its own so that all of it can be ended together."""

    side_by_side = False

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def prepare(self, config: RunConfig, cells: Sequence[Backend], say: Callable[[str], None]) -> Environment:
        """The machine that we are on."""
        return environment.detect()

    def stop(self) -> None:
        """End the worker within `POLL_S` and `GRACE_S`."""
        self._stopped.set()

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        """Start the worker, pass its progress on, and end it when it takes too long or when we are interrupted."""
        events = EventReader(out / "events.jsonl")
        for _before in events.new():  # what earlier workers of the cell said
            pass
        worker = None
        with BoundedLog(log, Redactor.here()) as kept:
            try:
                with _signals_wait():
                    worker = _start(job, out)
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    output = PipeReader(worker.stdout, kept.write)
                send(job.model_dump_json(), worker.stdin)
                return self._watch(worker, job, events, progress)
            finally:
                if worker is not None and worker.stdin is not None:
                    _end(worker)
                    worker.stdin.close()
                    output.finish()

    def _watch(
        self, worker: subprocess.Popen[bytes], job: Job, events: EventReader, progress: Callable[[ProgressEvent], None]
    ) -> Ending | None:
        started = time.monotonic()
        limit = job.config.timeout_s
        while worker.poll() is None:
            for event in events.new():
                if isinstance(event, ProgressEvent):
                    progress(event)
            if limit is not None and time.monotonic() - started > limit:
                return Ending("timeout", f"took longer than timeout_s ({limit:g} s) and was ended")
            if self._stopped.wait(POLL_S):
                return Ending("error", "was stopped")
        return _ending(worker.returncode)


def _start(job: Job, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [_interpreter(job), "-m", "qbench.run.worker", str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env=_environment(job),
        start_new_session=True,
    )


@contextmanager
def _signals_wait() -> Iterator[None]:
    """What asks us to end meanwhile is heard afterwards, when a worker that was started is known and can be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal interrupts other threads
        return
    came: list[int] = []
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in handled.items() if callable(handler)}
    for number in handled:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    for one in came:
        signal.raise_signal(one)


def _ending(code: int) -> Ending | None:
    if code == 0:
        return None
    if code > 0:
        return Ending("crashed", f"the worker exited with status {code}")
    name = signal.Signals(-code).name
    hint = ", often the system ending a process when memory runs out" if name == "SIGKILL" else ""
    return Ending("crashed", f"the worker was killed by {name}{hint}")


def _interpreter(job: Job) -> str:
    python = job.backend.worker_python
    return str(python.expanduser()) if python else sys.executable


def _environment(job: Job) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        # Should a library read a pickle after all, it may hold tensors and nothing that runs.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }
    if job.backend.worker_python:
        # The other interpreter brings the backend's libraries, not this package.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End what is left of the worker and of everything it started."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    worker.wait()
