"""Workers forked from a process that has imported their libraries: what a run measures is tested in seconds.

Tests of how workers start, log and end take the real executor; so does a cell that names an interpreter of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

from qbench.records.redact import Redactor
from qbench.run import job as jobs
from qbench.run import local
from qbench.run.events import EventReader, ProgressEvent
from qbench.run.executor import Ending
from qbench.run.job import Job
from qbench.run.local import LocalExecutor
from qbench.run.logs import BoundedLog, PipeReader

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "tests.support.worker_imports"])


class WarmExecutor(LocalExecutor):
    """The local executor, but for how a worker comes to be."""

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        if job.backend.python:
            return super().run(job, out, log, progress)
        events = EventReader(out / "events.jsonl")
        for _before in events.new():
            pass
        job_read, job_write = FORKS.Pipe(duplex=False)
        log_read, log_write = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_work, args=(out, job_read, log_write, local._environment(job), Path.cwd()))
        with BoundedLog(log, Redactor.here()) as kept:
            process.start()
            job_read.close()
            log_write.close()
            line = os.fdopen(os.dup(job_write.fileno()), "wb", buffering=0)
            output = PipeReader(os.fdopen(os.dup(log_read.fileno()), "rb", buffering=0), kept.write)
            try:
                jobs.send(job.model_dump_json(), line)
                return self._watch(Forked(process), job, events, progress)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
                line.close()
                output.finish()
                job_write.close()
                log_read.close()


def workers() -> list[psutil.Process]:
    """Living processes of this one's runs: each worker leads a session of its own, and the fork server does not."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and os.getsid(child.pid) != os.getsid(0)
    ]


class Forked:
    """A process with the part of `subprocess.Popen` that a watch over it needs."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def _work(out: Path, job: Connection, log: Connection, environment: dict[str, str], folder: Path) -> None:
    from qbench.run import worker

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(job.fileno(), 0)
    job.close()
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    log.close()
    sys.argv = ["qbench.run.worker", str(out)]
    worker.main()
