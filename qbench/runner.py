"""Runs the cells of a configuration, one after another, and leaves tables that are complete at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from qbench import environment, folders, keys, plan, source
from qbench.config import Backend, RunConfig
from qbench.environment import Environment
from qbench.errors import QbenchError
from qbench.events import EventLog, ProgressEvent
from qbench.executor import Ending, Executor, LocalExecutor
from qbench.job import Job, cell_row
from qbench.keys import CELL
from qbench.redact import Redactor
from qbench.results import RunRecord, read_run
from qbench.rows import CellRow
from qbench.run_folder import RunFolder, locked


class Reporter(Protocol):
    """Whoever watches the run."""

    def say(self, text: str) -> None: ...
    def cell_started(self, label: str, number: int, total: int) -> None: ...
    def progress(self, event: ProgressEvent) -> None: ...
    def cell_finished(self, row: CellRow) -> None: ...


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

    What was measured before under the same keys (see `qbench.keys`) is kept; what is missing or failed is measured.

    Returns:
        The run's folder, and whether every chosen cell is ok.

    Raises:
        QbenchError: nothing was run; the message says why.
    """
    machine = environment.detect()
    config = plan.settle(config)
    cells = plan.select(config, only)
    plan.preflight(config, machine)
    model = find_model(config, machine, reporter.say)
    fingerprint = source.fingerprint(model)
    units = {backend.label: keys.units(config, backend, machine, fingerprint) for backend in config.backends}
    # As they stand in run.json.
    facts = Redactor.here().value(keys.run_facts(config, machine, fingerprint))
    folder = RunFolder(results / config.name, config, facts, units)
    folder.check(fresh=fresh)
    folder.check_reference(cells, fresh=fresh)
    with locked(folder.path), _writing(folder.path):
        folder.check(fresh=fresh)  # another run may have come and gone
        folder.make(fresh=fresh)
        record = _record(config, cells, folder, command, machine, fingerprint)
        folder.write_record(record)
        try:
            rows = _run_cells(config, record.order, folder, model, reporter, executor or LocalExecutor())
        finally:
            folder.write_tables()
            folder.write_record(record.model_copy(update={"finished": datetime.now(UTC)}))
            folder.write_summary()
    return folder.path, all(row.status == "ok" for row in rows)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full disk, or a folder that went away, is for the user to mend."""
    try:
        yield
    except OSError as error:
        raise QbenchError(
            f"{folder}: {error.strerror or error}; what was measured is in {folder / 'cells'}, and the same command "
            "goes on with it once the folder can be written"
        ) from error


def _record(
    config: RunConfig, cells: Sequence[Backend], folder: RunFolder, command: str, machine: Environment, fingerprint: str
) -> RunRecord:
    """What run.json says before the first cell."""
    now = datetime.now(UTC)
    return RunRecord(
        name=config.name,
        model=config.model.name,
        command=command,
        config=_dump(config),
        model_fingerprint=fingerprint,
        facts=folder.facts,
        order=tuple(cell.label for cell in plan.shuffle(config, cells)),
        environment=machine,
        started=read_run(folder.path).record.started if folder.holds_run else now,
    )


def find_model(config: RunConfig, machine: Environment, say: Callable[[str], None]) -> Path:
    """The local folder of the configuration's model.

    Raises:
        QbenchError: see `qbench.source.resolve`.
    """
    dtype = ("float16" if machine.gpus else "bfloat16") if config.dtype == "auto" else config.dtype
    return source.resolve(config.model, dtype=dtype, seed=config.seed, say=say)


def _run_cells(
    config: RunConfig, order: Sequence[str], folder: RunFolder, model: Path, reporter: Reporter, executor: Executor
) -> list[CellRow]:
    rows = []
    for number, label in enumerate(order, start=1):
        missing, row = folder.missing(label), folder.cell_row(label)
        if row and not missing:
            reporter.say(f"{label}: already measured, kept (--fresh measures again)")
        else:
            if len(missing) < len(folder.units[label]):
                reporter.say(f"{label}: goes on; kept are {len(folder.units[label]) - len(missing)} of its parts")
            reporter.cell_started(label, number, len(order))
            row = _run_cell(config, label, missing, folder, model, reporter, executor)
            reporter.cell_finished(row)
            folder.write_tables()
        rows.append(row)
    return rows


def _run_cell(
    config: RunConfig,
    label: str,
    missing: Sequence[str],
    folder: RunFolder,
    model: Path,
    reporter: Reporter,
    executor: Executor,
) -> CellRow:
    out = folder.cell(label)
    _clear_attempt(out)
    job = Job(
        config=config,
        label=label,
        folder=model,
        answers=folder.answers.resolve(),
        reference=folder.reference.resolve(),
        model_fingerprint=source.fingerprint(model),
        units=dict(folder.units[label]),
        missing=tuple(missing),
    )
    # Until the worker says how it ended, this cell has no row.
    EventLog(out / "events.jsonl").unit(CELL, job.units[CELL], (), complete=False)
    log = folder.path / "logs" / f"{label}.log"
    ending = executor.run(job, out, log, reporter.progress)
    row = folder.cell_row(label)
    if row is None:
        ending = ending or Ending("crashed", "the worker ended without a result")
        row = cell_row(config, job.backend, status=ending.status, error=ending.reason + last_words(log))
        EventLog(out / "events.jsonl").unit(CELL, job.units[CELL], [row])
    return row


def last_words(log: Path) -> str:
    """The last line of a worker's log, to be put behind the reason for its end; empty if it said nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return f"; its last words: {lines[-1].strip()[:300]}" if lines else ""


def _clear_attempt(out: Path) -> None:
    """Remove what an earlier worker of the cell left, except what it finished."""
    if out.is_symlink():
        out.unlink()
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.is_symlink() or path.name not in ("events.jsonl", "journal"):
            folders.remove(path)


def _dump(config: RunConfig) -> dict[str, Any]:
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped
