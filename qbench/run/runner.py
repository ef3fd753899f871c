"""Runs the cells of a configuration, one after another, and leaves tables that are complete at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qbench.config import Backend, RunConfig
from qbench.errors import QbenchError
from qbench.machine.environment import Environment
from qbench.model import find
from qbench.plan import cells as plan
from qbench.records.redact import Redactor
from qbench.records.run import RunRecord, read_run
from qbench.run import fingerprint as keys
from qbench.run.cells import CellRunner, Reporter
from qbench.run.executor import Executor, LocalExecutor
from qbench.run.folder import RunFolder, locked


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

    What was measured before under the same keys (see `qbench.run.fingerprint`) is kept; what is missing or failed is
    measured.

    Returns:
        The run's folder, and whether every chosen cell is ok.

    Raises:
        QbenchError: nothing was run; the message says why.
    """
    executor = executor or LocalExecutor()
    config = plan.resolve(config)
    cells = plan.select(config, only)
    machine = executor.prepare(config, cells, reporter.say)
    plan.preflight(config, machine)
    model = find_model(config, machine, reporter.say)
    fingerprint = find.fingerprint(model)
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
            rows = CellRunner(config, folder, model, executor, reporter).run(record.order)
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
        QbenchError: see `qbench.model.find.resolve`.
    """
    dtype = ("float16" if machine.gpus else "bfloat16") if config.dtype == "auto" else config.dtype
    return find.resolve(config.model, dtype=dtype, seed=config.seed, say=say)


def _dump(config: RunConfig) -> dict[str, Any]:
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped
