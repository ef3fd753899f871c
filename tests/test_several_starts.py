"""Cells that are measured in several processes: their order, what a rerun finds, and starts that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qbench.config import RunConfig
from qbench.records.run import read_run
from qbench.run.events import EventLog, ProgressEvent, read_units
from qbench.run.executor import Ending
from qbench.run.job import Job
from qbench.run.local import LocalExecutor
from tests.support.frames import read_frames
from tests.support.runs import HereExecutor, config, in_order, run

ROWS = [(label, start, trial) for label in ("fp16", "int4") for start in (0, 1) for trial in (0, 1)]


def two_starts(model: Path, **changes: Any) -> RunConfig:
    timed = {"batch_sizes": [1], "seq_len": 12, "new_tokens": 4, "trials": 2, "starts": 2} | changes
    cells: list[dict[str, object]] = [{"kind": "fp16"}, {"kind": "int4"}]
    return config(model, cells, measure={"throughput": timed}, seed=in_order(2), dtype="float32")


def found(folder: Path) -> list[tuple[str, int, int]]:
    rows = read_frames(folder).throughput
    return [
        (str(label), int(start), int(trial)) for label, start, trial in rows[["label", "start", "trial"]].to_numpy()
    ]


def at_the_second_start_of_int4(what: Callable[[], Ending]) -> type[LocalExecutor]:
    class Disturbed(HereExecutor):
        def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
            if (job.label, job.start) == ("int4", 1):
                return what()
            return super().run(job, out, log, progress)

    return Disturbed


def test_every_cell_is_measured_once_before_any_is_started_again(tiny_llama: Path, tmp_path: Path) -> None:
    folder, ok, watcher = run(two_starts(tiny_llama), tmp_path)
    assert ok
    assert watcher.started == [
        ("fp16, start 1 of 2", 1, 4), ("int4, start 1 of 2", 2, 4), ("fp16, start 2 of 2", 3, 4),
        ("int4, start 2 of 2", 4, 4),
    ]  # fmt: skip
    assert found(folder) == ROWS
    cells = read_frames(folder).cells
    assert cells["label"].tolist() == ["fp16", "int4"]
    assert cells["peak_memory_bytes"].notna().all()
    assert (folder / "logs" / "int4.start-2.log").is_file()


def test_an_interrupted_run_goes_on_with_the_start_that_is_missing(tiny_llama: Path, tmp_path: Path) -> None:
    def interrupt() -> Ending:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(two_starts(tiny_llama), tmp_path, executor=at_the_second_start_of_int4(interrupt))
    folder = tmp_path / "r"
    assert found(folder) == ROWS[:6]
    before = read_run(folder).throughput
    _, ok, watcher = run(two_starts(tiny_llama), tmp_path)
    assert ok
    assert [label for label, *_ in watcher.started] == ["int4, start 2 of 2"]
    assert found(folder) == ROWS
    assert read_run(folder).throughput[:6] == before


def test_a_start_that_fails_is_named_and_made_again(tiny_llama: Path, tmp_path: Path) -> None:
    crash = at_the_second_start_of_int4(lambda: Ending("crashed", "the worker was killed by SIGSEGV"))
    folder, ok, _ = run(two_starts(tiny_llama), tmp_path, executor=crash)
    data = read_frames(folder)
    assert not ok
    assert data.throughput["status"].tolist() == ["ok"] * 6 + ["crashed"]
    assert data.cells["status"].tolist() == ["ok", "ok"]
    assert data.cells["failed"].tolist()[1] == "start 2: crashed: the worker was killed by SIGSEGV"
    folder, ok, watcher = run(two_starts(tiny_llama), tmp_path)
    assert ok
    assert [label for label, *_ in watcher.started] == ["int4, start 2 of 2"]
    assert found(folder) == ROWS
    assert read_frames(folder).cells["failed"].isna().all()


def test_a_start_with_another_kernel_than_the_first_is_no_start_of_it(tiny_llama: Path, tmp_path: Path) -> None:
    folder, _, _ = run(two_starts(tiny_llama, starts=1), tmp_path)
    events = folder / "cells" / "int4" / "events.jsonl"
    units = read_units(events)
    events.unlink()
    log = EventLog(events)
    log.kernel = "another"
    for unit in units.values():
        log.unit(unit.name, unit.key, unit.parsed())
    _, ok, _ = run(two_starts(tiny_llama), tmp_path)
    assert not ok
    cells = read_frames(folder).cells
    assert cells["status"].tolist() == ["ok", "ok"]
    assert "start 2: error: this start multiplies by " in cells["failed"].tolist()[1]


def test_a_run_of_one_start_is_continued_with_more(tiny_llama: Path, tmp_path: Path) -> None:
    run(two_starts(tiny_llama, starts=1), tmp_path)
    folder, ok, watcher = run(two_starts(tiny_llama), tmp_path)
    assert ok
    assert [label for label, *_ in watcher.started] == ["fp16, start 2 of 2", "int4, start 2 of 2"]
    assert found(folder) == ROWS
