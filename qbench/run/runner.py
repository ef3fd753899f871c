"""Runs the cells of a plan, and leaves tables that are complete at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from qbench.errors import QbenchError
from qbench.model import content, find
from qbench.plan.cells import Plan, fit_lengths
from qbench.records.redact import Redactor
from qbench.records.run import RunRecord, read_run
from qbench.run import fingerprint as keys
from qbench.run.cells import CellRunner, Reporter
from qbench.run.executor import Executor
from qbench.run.folder import RunFolder, locked


def run(
    plan: Plan,
    results: Path,
    reporter: Reporter,
    *,
    executor: Executor,
    command: str,
    summarize: Callable[[Path], None],
    fresh: bool = False,
) -> tuple[Path, bool]:
    """Run what is missing of a plan.

    What was measured before under the same keys (see `qbench.run.fingerprint`) is kept; what is missing or failed is
    measured.

    Args:
        results: the folder of runs; this one goes to a folder of its name.
        executor: runs the cells, and has prepared the plan.
        command: what the record says that was typed.
        summarize: called with the run's folder once its tables are written, whatever ended the run.
        fresh: delete what was measured before.

    Returns:
        The run's folder, and whether every chosen cell is ok.

    Raises:
        QbenchError: nothing was run; the message says why.
    """
    config = plan.config
    for note in plan.notes:
        reporter.say(note)
    model = find.find_model(config, cuda=bool(plan.machine.gpus), say=reporter.say)
    # Of a model that had to be fetched nothing was known before.
    config = fit_lengths(config, find.read_config(model))
    plan = replace(plan, config=config)
    fingerprint = content.fingerprint(model)
    units = {backend.label: keys.units(config, backend, plan.machine, fingerprint) for backend in config.backends}
    # As they stand in run.json.
    facts = Redactor.here().value(keys.run_facts(config, plan.machine, fingerprint))
    folder = RunFolder(results / config.name, config, facts, units)
    folder.check(fresh=fresh)
    folder.check_reference(plan.cells, fresh=fresh)
    with locked(folder.path), _writing(folder.path):
        folder.check(fresh=fresh)  # another run may have come and gone
        if not fresh and (rewritten := folder.rewritten()):
            reporter.say(f"changed since the last run: {', '.join(rewritten)}; what depends on it is measured again")
        folder.make(fresh=fresh)
        record = _record(plan, folder, command, fingerprint)
        folder.write_record(record)
        try:
            rows = CellRunner(config, folder, model, fingerprint, executor, reporter).run(record.order)
        finally:
            folder.write_tables()
            folder.write_record(record.model_copy(update={"finished": datetime.now(UTC), "asked": folder.asked()}))
            summarize(folder.path)
    return folder.path, all(row.status == "ok" and not row.failed for row in rows)


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


def _record(plan: Plan, folder: RunFolder, command: str, fingerprint: str) -> RunRecord:
    """What run.json says before the first cell."""
    return RunRecord(
        name=plan.config.name,
        model=plan.config.model.name,
        command=command,
        config=plan.config.model_dump(mode="json"),
        model_fingerprint=fingerprint,
        facts=folder.facts,
        order=plan.order,
        environment=plan.machine,
        started=read_run(folder.path).record.started if folder.holds_run else datetime.now(UTC),
    )
