"""Runs the cells of a configuration, one after another, and leaves tables that are complete at every moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from qbench import environment, plan, source
from qbench.config import Backend, RunConfig
from qbench.environment import Environment
from qbench.errors import QbenchError
from qbench.events import EventLog, ProgressEvent, read_rows
from qbench.executor import Ending, Executor, LocalExecutor
from qbench.job import Job, cell_row
from qbench.results import RunRecord, read_run, write_atomically, write_lines, write_table
from qbench.rows import LINES, TABLES, CellRow, Row
from qbench.stats import summarize


class Reporter(Protocol):
    """Whoever watches the run."""

    def say(self, text: str) -> None: ...
    def cell_started(self, label: str, number: int, total: int) -> None: ...
    def progress(self, event: ProgressEvent) -> None: ...
    def cell_finished(self, row: CellRow) -> None: ...


class RunFolder:
    """The files of one run: results/<name>/."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.path = folder
        self.reference = folder / "reference" / "logprobs.safetensors"
        self._config = config

    def check(self, *, fresh: bool) -> None:
        """Make sure that what the folder holds belongs to this configuration, or may be deleted. Changes nothing.

        Raises:
            QbenchError: it is another configuration's, or not a run's.
        """
        if (self.path / "run.json").exists():
            if not fresh:
                self._same_config()
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise QbenchError(f"{self.path}: is not empty and holds no run; choose another `name:` or --results")

    def make(self, *, fresh: bool) -> None:
        """Make the folder, empty if `fresh`.

        Raises:
            QbenchError: it cannot be written.
        """
        if fresh:
            self._clear()
        try:
            for folder in (self.path, self.path / "cells", self.path / "logs", self.path / "answers"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise QbenchError(
                f"{self.path}: results cannot be written here ({error.strerror}); choose a folder with --results"
            ) from error

    def _clear(self) -> None:
        for name in ("cells", "logs", "answers", "reference"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        derived = (*(f"{stem}.csv" for stem in TABLES), *(f"{stem}.jsonl" for stem in LINES))
        for name in ("run.json", "summary.csv", *derived):
            (self.path / name).unlink(missing_ok=True)

    def _same_config(self) -> None:
        before, now = _flat(read_run(self.path).record.config), _flat(_dump(self._config))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed[:8])
            raise QbenchError(
                f"{self.path} holds a run of another configuration:\n{lines}\n"
                "choose another `name:` or --results, or start over with --fresh"
            )

    def check_reference(self, cells: Sequence[Backend], *, fresh: bool) -> None:
        """Make sure that the cells which `cells` lacks now will find what they are compared with.

        Raises:
            QbenchError: the 16-bit cell has left no log-probabilities here and would not run.
        """
        reference = self._config.reference
        if reference is None or (self.reference.is_file() and not fresh):
            return
        missing = [cell for cell in cells if fresh or not self.is_done(cell.label)]
        if missing and reference not in missing:
            raise QbenchError(
                f"measure.perplexity.divergence: {missing[0].label} is compared with the cell {reference.label}, "
                f"whose log-probabilities are not in {self.reference.parent}; add --only {reference.label}, "
                "start over with --fresh, or leave it out with --set measure.perplexity.divergence=false"
            )

    def is_done(self, label: str) -> bool:
        """Whether a cell ended ok, so that its rows are kept."""
        row = self.cell_row(label)
        return row is not None and row.status == "ok"

    def cell(self, label: str) -> Path:
        """Where a cell's worker writes."""
        return self.path / "cells" / label

    def rows(self, label: str) -> list[Row]:
        """Everything kept of a cell."""
        return read_rows(self.cell(label) / "events.jsonl")

    def cell_row(self, label: str) -> CellRow | None:
        """The cell's own row, if it came to its end."""
        found = [row for row in self.rows(label) if isinstance(row, CellRow)]
        return found[-1] if found else None

    def write_tables(self) -> None:
        """Derive the CSVs, and the files of lines for which there are rows, from the cells' events."""
        rows = [row for backend in self._config.backends for row in self.rows(backend.label)]
        for stem, row_type in TABLES.items():
            write_table(self.path / f"{stem}.csv", row_type, [row for row in rows if type(row) is row_type])
        for stem, row_type in LINES.items():
            path, found = self.path / f"{stem}.jsonl", [row for row in rows if type(row) is row_type]
            if found or path.exists():
                write_lines(path, found)

    def write_record(self, record: RunRecord) -> None:
        """Write run.json."""
        write_atomically(self.path / "run.json", record.model_dump_json(indent=2) + "\n")

    def write_summary(self) -> None:
        """Derive summary.csv; limited evaluations stay out of it."""
        text: str = summarize(read_run(self.path)).to_csv(index=False, lineterminator="\n")
        write_atomically(self.path / "summary.csv", text)


def run(
    config: RunConfig,
    results: Path,
    reporter: Reporter,
    *,
    command: str,
    only: Sequence[str] = (),
    fresh: bool = False,
    executor: Executor | None = None,
) -> tuple[Path, bool]:
    """Run what is missing of a configuration.

    Cells that ended ok before are kept as they are; others are measured anew.

    Returns:
        The run's folder, and whether every chosen cell is ok.

    Raises:
        QbenchError: nothing was run; the message says why.
    """
    machine = environment.detect()
    config = plan.settle(config)
    cells = plan.select(config, only)
    plan.preflight(config, machine)
    folder = RunFolder(results / config.name, config)
    folder.check(fresh=fresh)
    folder.check_reference(cells, fresh=fresh)
    model = find_model(config, machine, reporter.say)
    folder.make(fresh=fresh)
    record = RunRecord(
        name=config.name,
        model=config.model.name,
        command=command,
        config=_dump(config),
        model_fingerprint=source.fingerprint(model),
        environment=machine,
        started=datetime.now(UTC),
    )
    folder.write_record(record)
    try:
        rows = _run_cells(config, cells, folder, model, reporter, executor or LocalExecutor())
    finally:
        folder.write_tables()
        folder.write_record(record.model_copy(update={"finished": datetime.now(UTC)}))
        folder.write_summary()
    return folder.path, all(row.status == "ok" for row in rows)


def find_model(config: RunConfig, machine: Environment, say: Callable[[str], None]) -> Path:
    """The local folder of the configuration's model.

    Raises:
        QbenchError: see `qbench.source.resolve`.
    """
    dtype = ("float16" if machine.gpus else "bfloat16") if config.dtype == "auto" else config.dtype
    return source.resolve(config.model, dtype=dtype, seed=config.seed, say=say)


def _run_cells(
    config: RunConfig,
    cells: Sequence[Backend],
    folder: RunFolder,
    model: Path,
    reporter: Reporter,
    executor: Executor,
) -> list[CellRow]:
    rows = []
    for number, backend in enumerate(cells, start=1):
        row = folder.cell_row(backend.label)
        if row and row.status == "ok":
            reporter.say(f"{backend.label}: already measured, kept (--fresh measures again)")
        else:
            reporter.cell_started(backend.label, number, len(cells))
            row = _run_cell(config, backend, folder, model, reporter, executor)
            reporter.cell_finished(row)
            folder.write_tables()
        rows.append(row)
    return rows


def _run_cell(
    config: RunConfig, backend: Backend, folder: RunFolder, model: Path, reporter: Reporter, executor: Executor
) -> CellRow:
    out = folder.cell(backend.label)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    job = Job(
        config=config,
        label=backend.label,
        folder=model,
        answers=(folder.path / "answers").resolve(),
        reference=folder.reference.resolve(),
        model_fingerprint=source.fingerprint(model),
    )
    ending = executor.run(job, out, folder.path / "logs" / f"{backend.label}.log", reporter.progress)
    row = folder.cell_row(backend.label)
    if row is None:
        ending = ending or Ending("crashed", "the worker ended without a result; the log has its last words")
        row = cell_row(config, backend, status=ending.status, error=ending.reason)
        EventLog(out / "events.jsonl").row(row)
    return row


def _dump(config: RunConfig) -> dict[str, Any]:
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, child in items:
        flat |= _flat(child, f"{path}.{key}" if path else str(key))
    return flat
