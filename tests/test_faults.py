"""Runs to which something happens: each ends with the right row, nothing measured is lost, nothing stands twice."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qbench.backends import fp16
from qbench.config import RunConfig
from qbench.errors import QbenchError, UnavailableError
from qbench.run.events import ProgressEvent, read_units
from qbench.run.executor import Ending
from qbench.run.fingerprint import CELL
from qbench.run.job import Job
from qbench.run.local import LocalExecutor
from tests.support.frames import read_frames
from tests.support.running import execute, workers
from tests.support.runs import QUICK, HereExecutor, config, interpreter, run
from tests.support.watchers import Watcher

LONGEST_S = 8.0
"""Seconds after which a worker is killed at the latest, about what a cell takes."""
TIMES = ("load_s", "quantize_s", "load_peak_bytes", "peak_rss_bytes", "cached", "read_bytes_per_s")
"""Columns of cells.csv that no two runs have alike."""


class Killer(HereExecutor):
    """Kills the worker at a random moment of what it does; the cell of the label `spared` has none."""

    def __init__(self, seed: int, spared: str | None) -> None:
        super().__init__()
        self.kills = 0
        self._random = random.Random(seed)
        self._spared = spared

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        if job.backend.label == self._spared:
            return super().run(job, out, log, progress)
        timer = threading.Timer(self._random.uniform(0, LONGEST_S), self._kill)
        timer.start()
        try:
            return LocalExecutor.run(self, job, out, log, progress)
        finally:
            timer.cancel()
            timer.join()

    def _kill(self) -> None:
        for worker in workers():
            self.kills += 1
            worker.kill()


def everything() -> RunConfig:
    """Every kind of unit, on the demo model."""
    measure = {
        "memory": {"seq_len": 16},
        "throughput": {"batch_sizes": [1, 2], "seq_len": 24, "new_tokens": 4, "trials": 4},
        "mmlu": {"data": "demo", "limit": 3, "batch_size": 2},
        "noise_floor": {},
        "perplexity": {"window": 128, "limit": 8},
        "generations": {"new_tokens": 4, "prompts": ["In Jundol, the highest mountain is"]},
    }
    cells = {"backends": [{"kind": "fp16"}, {"kind": "int4"}], "dtype": "float32"}
    return RunConfig.model_validate({"name": "r", "model": {"demo": True}, "measure": measure, **cells})


def figures(folder: Path) -> dict[str, pd.DataFrame]:
    """All that a run found out, without the times."""
    data = read_frames(folder)
    return {
        "cells": data.cells.drop(columns=list(TIMES)),
        "throughput": data.throughput[["label", "batch_size", "trial", "status", "peak_memory_bytes"]],
        "accuracy": data.accuracy.drop(columns="wall_s"),
        "noise": data.noise.drop(columns="wall_s"),
        "perplexity": data.perplexity.drop(columns="wall_s"),
        "generations": pd.read_json(folder / "generations.jsonl", lines=True),
        **{path.stem: pd.read_parquet(path) for path in sorted((folder / "answers").iterdir())},
    }


@pytest.mark.parametrize(
    ("kills", "spared"),
    [(1, "fp16"), pytest.param(50, None, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_workers_killed_at_any_moment_leave_the_rows_of_an_undisturbed_run(
    tmp_path: Path, kills: int, spared: str | None
) -> None:
    settings = everything()
    expected = figures(run(settings, tmp_path / "undisturbed")[0])
    assert {name: len(frame) for name, frame in expected.items()} == {
        "cells": 2, "throughput": 16, "accuracy": 24, "noise": 1, "perplexity": 2, "generations": 2,
        "fp16": 36, "fp16.noise": 36, "int4": 36,
    }  # fmt: skip
    killer = Killer(seed=0, spared=spared)
    rounds = 0
    while killer.kills < kills:
        rounds += 1
        for _ in range(kills + 1):
            folder, ok = execute(
                settings,
                tmp_path / str(rounds),
                Watcher(),
                command="",
                executor=killer if killer.kills < kills else HereExecutor(),
            )
            crashed = read_frames(folder).cells.query("status != 'ok'")
            # Also a cell that the killed one was to be compared with.
            assert crashed["error"].str.contains("killed by SIGKILL|the cell fp16 has left no").all()
            if ok:
                break
        found = figures(folder)
        assert list(found) == list(expected)
        for name, frame in expected.items():
            pd.testing.assert_frame_equal(found[name], frame, obj=name)
    assert rounds >= 1


def test_results_that_vanish_end_the_run_with_a_remedy(tiny_llama: Path, tmp_path: Path) -> None:
    script = f"rm -rf {tmp_path / 'results'}; exit 3"
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}])
    with pytest.raises(QbenchError, match=r"results/r: .*; what was measured is in .*cells, and the same command "):
        run(settings, tmp_path / "results")


def test_a_full_disk_is_the_cells_last_words(tiny_llama: Path, tmp_path: Path) -> None:
    """A real limit: no file of the worker may grow beyond 4 KiB, and its events do."""
    script = f'ulimit -f 8; exec {sys.executable} "$@"'
    many = {"throughput": QUICK["throughput"] | {"trials": 15}}
    backends = [{"kind": "fp16", "python": interpreter(tmp_path, script)}, {"kind": "int4"}]
    folder, ok, watcher = run(config(tiny_llama, backends, measure=many), tmp_path / "results")
    assert not ok
    rows = {row.label: row for row in watcher.finished}
    assert rows["fp16"].status == "crashed"
    assert "File too large" in (rows["fp16"].error or "")
    assert rows["int4"].status == "ok"
    kept = len(read_units(folder / "cells" / "fp16" / "events.jsonl").keys() - {CELL})
    data = read_frames(folder)
    assert data.throughput.groupby("label").size().to_dict() == {"fp16": kept, "int4": 30}
    assert 0 < kept < 30


def test_a_disk_that_fills_up_during_an_evaluation_is_an_error_and_no_accuracy(tmp_path: Path) -> None:
    """The journal of answered batches outgrows the limit, the events do not."""
    script = f'ulimit -f 32; exec {sys.executable} "$@"'
    settings = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"demo": True},
            "dtype": "float32",
            "backends": [{"kind": "fp16", "python": interpreter(tmp_path, script)}],
            "measure": {"memory": {"seq_len": 8}, "mmlu": {"data": "demo", "limit": 30, "num_fewshot": 0}},
        }
    )
    folder, ok, watcher = run(settings, tmp_path / "results")
    assert not ok
    assert (watcher.finished[0].status, watcher.finished[0].failed) == (
        "ok",
        "mmlu: OSError: [Errno 27] File too large",
    )
    assert read_frames(folder).accuracy.empty
    assert not list((folder / "answers").glob("*.parquet"))


STEPPING = """
import random, time
real = time.time
time.time = lambda: real() + random.uniform(-1e6, 1e6)
"""


def test_a_clock_that_jumps_changes_no_figure(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STEPPING)
    script = f'PYTHONPATH={tmp_path}:{Path(__file__).parent.parent} exec {sys.executable} "$@"'
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + random.uniform(-1e6, 1e6))
    start = time.monotonic()
    settings = config(tiny_llama, [{"kind": "int4", "python": interpreter(tmp_path, script)}], timeout_s=500.0)
    folder, ok, _ = run(settings, tmp_path / "results")
    elapsed = time.monotonic() - start
    assert ok
    data = read_frames(folder)
    assert 0 < data.cells["load_s"].iloc[0] < elapsed
    assert data.throughput["ttft_s"].between(0, elapsed).all()


def test_a_native_crash_is_a_row(tiny_llama: Path, tmp_path: Path) -> None:
    script = f'exec {sys.executable} -c "import ctypes; ctypes.string_at(0)"'
    row = run(config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}]), tmp_path / "results")
    assert row[2].finished[0].status == "crashed"
    assert "killed by SIGSEGV" in (row[2].finished[0].error or "")


def test_a_backend_whose_library_is_missing_is_unavailable_with_the_command_that_installs_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    hidden = (
        "import sys; sys.modules['bitsandbytes'] = None; sys.argv = sys.argv[2:]; import qbench.run.worker as worker"
    )
    script = f'exec {sys.executable} -c "{hidden}; worker.main()" "$@"'
    backends = [{"kind": "nf4", "python": interpreter(tmp_path, script)}, {"kind": "fp16"}]
    _, ok, watcher = run(config(tiny_llama, backends), tmp_path / "results")
    assert not ok
    rows = {row.label: row for row in watcher.finished}
    assert (rows["nf4"].status, rows["fp16"].status) == ("unavailable", "ok")
    assert "`pip install 'qbench-llm[nf4]'` installs what it needs" in (rows["nf4"].error or "")


def test_a_backend_that_cannot_be_prepared_is_unavailable_and_others_go_on(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(options: object, config: object) -> None:
        raise UnavailableError("there is no nvcc here")

    monkeypatch.setattr(fp16, "prepare", prepare, raising=False)
    _, ok, watcher = run(config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4"}]), tmp_path / "results")
    assert not ok
    rows = {row.label: (row.status, row.error) for row in watcher.finished}
    assert rows == {"fp16": ("unavailable", "there is no nvcc here"), "int4": ("ok", None)}
