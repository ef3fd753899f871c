"""Configurations of small runs, and the runs themselves."""

import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from qbench.config import RunConfig
from qbench.run.events import EventReader, ProgressEvent
from qbench.run.executor import Ending
from qbench.run.job import Job
from qbench.run.local import LocalExecutor
from tests.support.running import execute
from tests.support.watchers import Watcher

QUICK = {"throughput": {"batch_sizes": [1, 2], "seq_len": 24, "new_tokens": 4, "trials": 2}}

YAML = """
name: tiny
model: {{path: {model}}}
backends: [{{kind: fp16}}, {{kind: int4}}]
measure:
  throughput: {{batch_sizes: [1, 2], seq_len: 24, new_tokens: 4, trials: 2}}
"""


def run_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}]} | changes)


def config(model: Path, backends: list[dict[str, object]], **changes: object) -> RunConfig:
    base = {"name": "r", "model": {"path": model}, "backends": backends, "measure": QUICK}
    return RunConfig.model_validate(base | changes)


class HereExecutor(LocalExecutor):
    """Cells in this process, which has imported what they need: for what a worker does, and not how it ends."""

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        import torch

        from qbench.run.cell import Cell

        if job.backend.worker_python:
            return super().run(job, out, log, progress)
        events, threads = EventReader(out / "events.jsonl"), torch.get_num_threads()
        list(events.new())
        try:
            with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
                Cell(job, out).run()
        finally:
            torch.set_num_threads(threads)
        for event in events.new():
            if isinstance(event, ProgressEvent):
                progress(event)
        return None


@contextmanager
def cells_here() -> Iterator[pytest.MonkeyPatch]:
    """Where `qbench run`, called in this process, takes its cells in it, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qbench.run.local.LocalExecutor", HereExecutor)
        yield patch


def run(
    settings: RunConfig,
    results: Path,
    *,
    fresh: bool = False,
    only: tuple[str, ...] = (),
    executor: type[LocalExecutor] = HereExecutor,
) -> tuple[Path, bool, Watcher]:
    watcher = Watcher()
    folder, ok = execute(
        settings, results, watcher, command="qbench run x", fresh=fresh, only=only, executor=executor()
    )
    return folder, ok, watcher


def run_in_workers(settings: RunConfig, results: Path, **how: bool) -> tuple[Path, bool, Watcher]:
    """`run` with a process for each cell, as `qbench run` does it."""
    return run(settings, results, executor=LocalExecutor, **how)


def in_order(cells: int) -> int:
    """A seed under which cells run in the order of the configuration."""
    return next(seed for seed in range(10**6) if random.Random(seed).sample(range(cells), cells) == [*range(cells)])


def interpreter(folder: Path, script: str) -> str:
    """An executable that stands in for a worker's Python."""
    path = folder / f"python-{abs(hash(script))}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
