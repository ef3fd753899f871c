"""What the harness itself costs of a run: starting workers, keeping rows, looking at the machine.

    python benchmarks/overhead.py [CONFIG] [--out FOLDER]

Runs the configuration (the smoke run unless given) in a temporary folder and watches it as a terminal would, to half a
second: a worker's start ends with its first word of loading, what it measures begins after that. Rows and looks at the
machine are too short for that; their cost is that of one, timed here, times how many there were.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import record
import typer

from qbench.analysis.summary_table import write_summary
from qbench.config import load
from qbench.machine.conditions import Sampler
from qbench.plan.cells import make_plan
from qbench.records.rows import CellRow
from qbench.records.run import read_run
from qbench.run import runner
from qbench.run.events import EventLog, ProgressEvent, read_units
from qbench.run.local import LocalExecutor

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"


PHASES = ("start_s", "load_s", "measure_s")
"""Of a cell: until its libraries are imported, until its model is loaded, until its row."""


class Clock:
    """A reporter that notes when things happened."""

    def __init__(self) -> None:
        self.cells: list[dict[str, object]] = []
        self._label = ""
        self._began = self._loading = self._measuring = 0.0

    def say(self, text: str) -> None:
        print(text)

    def cell_started(self, label: str, number: int, total: int) -> None:
        self._label, self._began = label, time.perf_counter()
        self._loading = self._measuring = 0.0

    def progress(self, event: ProgressEvent) -> None:
        now = time.perf_counter()
        # The first word after the backend's import is of the checkpoint or of loading, and memory is measured first.
        if not self._loading and not event.what.startswith("importing"):
            self._loading = now
        if not self._measuring and event.what == "memory":
            self._measuring = now

    def cell_finished(self, row: CellRow) -> None:
        now = time.perf_counter()
        self.cells.append(
            {
                "label": row.label,
                "status": row.status,
                "start_s": self._loading - self._began,
                "load_s": self._measuring - self._loading,
                "measure_s": now - self._measuring,
            }
        )


def seconds_of(call: Callable[[], object], repeats: int = 200) -> float:
    """Of one call, the mean of many."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def main(
    config: Annotated[Path, typer.Argument(help="YAML file")] = SMOKE,
    out: Annotated[Path | None, typer.Option(help="folder for the tables as CSV, with run.json")] = None,
) -> None:
    """Run a configuration and say what of its time was ours."""
    executor, clock = LocalExecutor(), Clock()
    plan = make_plan(load.load(config), executor.prepare)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results, ok = runner.run(
            plan, Path(folder), clock, executor=executor, command="benchmark", summarize=write_summary
        )
        wall_s = time.perf_counter() - start
        run = read_run(results)
        files = [results / "cells" / label / "events.jsonl" for label in run.record.order]
        events = sum(len(file.read_bytes().splitlines()) for file in files)
        units = [unit for file in files for unit in read_units(file).values()]
        trials = len(run.throughput)
        unit, sampler = units[0], Sampler()
        log = EventLog(Path(folder) / "events.jsonl")
        row_s = seconds_of(lambda: log.unit(unit.name, unit.key, unit.parsed()))
        progress_s = seconds_of(lambda: log.progress("measure", 1, 2))
        sample_s = seconds_of(sampler.sample)
    rows_s = len(units) * row_s + (events - len(units)) * progress_s
    sampling_s = 2 * trials * sample_s
    start_s, load_s, measure_s = (sum(float(str(cell[key])) for cell in clock.cells) for key in PHASES)
    harness_s = wall_s - load_s - measure_s + rows_s + sampling_s
    total = {
        "ok": ok,
        "wall_s": wall_s,
        "start_s": start_s,
        "load_s": load_s,
        "measure_s": measure_s,
        "rows_s": rows_s,
        "sampling_s": sampling_s,
        "while_measuring": (rows_s + sampling_s) / measure_s,
        "harness_s": harness_s,
        "harness_of_measuring": harness_s / measure_s,
    }
    record.keep(out, {"overhead_cells": clock.cells, "overhead": [total]}, script="overhead")


if __name__ == "__main__":
    typer.run(main)
