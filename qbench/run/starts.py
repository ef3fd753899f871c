"""Later starts of a cell: fresh processes that measure its throughput again, and what is kept of one that fails.

A cell has one row, that of its first start. A later start that fails leaves a row of the throughput with its status, so
that the next run makes it again.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from qbench.config import RunConfig
from qbench.config.trials import Trial
from qbench.records.rows import CellRow, Row, Status, ThroughputRow
from qbench.run.events import EventLog, read_units
from qbench.run.job import Job, identity


def keep_failure(log: EventLog, out: Path, job: Job, status: Status, reason: str, host: str | None = None) -> None:
    """Keep that a start has failed, at its first trial that is missing in `out`; on `host`, or here."""
    kept = read_units(out / "events.jsonl")
    done = {name for name, unit in kept.items() if unit.done and unit.key == job.units.get(name)}
    missing = next((name for name in job.missing if name not in done), None)
    settings = job.config.measure.throughput
    trial = Trial.parse(missing or "")
    if missing is None or trial is None or settings is None:
        return
    row = ThroughputRow(
        **{**identity(job.config, job.backend), "host": host or platform.node()},
        batch_size=trial.batch_size,
        trial=trial.number,
        start=trial.start,
        depth=trial.depth,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        decode_mode=settings.decode,
        kv_cache=settings.kv_cache,
        status=status,
        error=reason,
    )
    log.unit(missing, job.units[missing], [row])


def with_failures(row: CellRow, rows: Iterable[Row]) -> CellRow:
    """A cell's row that names the later starts which failed among its measures that did; too large a batch is none."""
    found = [
        f"start {one.start + 1}: {one.status}: {one.error}"
        for one in rows
        if isinstance(one, ThroughputRow) and one.start and one.status not in ("ok", "oom")
    ]
    return row.model_copy(update={"failed": "; ".join(filter(None, [row.failed, *found]))}) if found else row


def words(config: RunConfig, label: str, start: int) -> str:
    """What a person sees of a cell that is being measured."""
    starts = config.measure.starts
    return label if starts == 1 else f"{label}, start {start + 1} of {starts}"
