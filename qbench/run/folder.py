"""The files of one run, results/<name>/: what is kept of it, what is missing, and the tables made of what is kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qbench.config import NOISE_SUFFIX, Backend, RunConfig
from qbench.errors import QbenchError
from qbench.measure import divergence
from qbench.records import requests
from qbench.records.answers import task_file
from qbench.records.files import remove, write_atomically
from qbench.records.redact import Redactor
from qbench.records.rows import LINES, TABLES, AccuracyRow, CellRow, RequestRow, Row
from qbench.records.run import RunRecord, read_run, write_lines, write_record, write_table
from qbench.run import fingerprint, starts
from qbench.run.events import UnitEvent, last_kernel, read_units
from qbench.run.fingerprint import Facts

FOLDERS = ("cells", "logs", "answers", "reference")
"""What a run's folder holds beside its tables."""


class RunFolder:
    """A run's folder. `units` holds key by name of all units, for each cell by its label."""

    def __init__(self, folder: Path, config: RunConfig, facts: Facts, units: Mapping[str, Mapping[str, str]]) -> None:
        self.path = folder
        self.reference = folder / "reference" / "logprobs.safetensors"
        self.answers = folder / "answers"
        self.facts = facts
        self.units = units
        self._config = config

    @property
    def holds_run(self) -> bool:
        """Whether there is a run in it, of whatever configuration."""
        return (self.path / "run.json").exists()

    def check(self, *, fresh: bool) -> None:
        """Make sure that what the folder holds belongs with what will be measured, or may be deleted. Changes nothing.

        Raises:
            QbenchError: something that decides its figures has changed, or it is not a run's, or leads out of itself.
        """
        links = [self.path / name for name in FOLDERS if (self.path / name).is_symlink()]
        if links and not fresh:
            raise QbenchError(
                f"{links[0]}: is a link, and what a run writes and deletes stays in its own folder; "
                "remove the link, or start over with --fresh"
            )
        if self.holds_run:
            if not fresh:
                self._belongs_together()
        elif self.path.is_dir() and {path.name for path in self.path.iterdir()} - {LOCK, OWNER}:
            raise QbenchError(f"{self.path}: is not empty and holds no run; choose another `name:` or --results")

    def _belongs_together(self) -> None:
        before = read_run(self.path).record
        lines = fingerprint.changed(before.facts, self.facts) or self._not_asked_for()
        if not before.facts:
            lines = [f"qbench: {before.environment.versions.get('qbench')} there, which kept no keys"]
        if lines:
            shown = "\n".join(f"  {line}" for line in lines[:8]) + ("\n  …" if len(lines) > 8 else "")
            raise QbenchError(
                f"{self.path} holds a run of another configuration:\n{shown}\n"
                "choose another `name:` or --results, or start over with --fresh"
            )

    def rewritten(self) -> list[str]:
        """Which files that decide figures here have been written since they were measured, by the facts' names."""
        return fingerprint.rewritten(read_run(self.path).record.facts, self.facts) if self.holds_run else []

    def _not_asked_for(self) -> list[str]:
        found = {label: read_units(self._events(label)).keys() - units.keys() for label, units in self.units.items()}
        return [f"{label}: {unit} was measured there, not asked for now" for label in found for unit in found[label]]

    def make(self, *, fresh: bool) -> None:
        """Make the folder, empty if `fresh`.

        Raises:
            QbenchError: it cannot be written.
        """
        if fresh:
            self._clear()
        try:
            for folder in (self.path, self.path / "cells", self.path / "logs", self.answers):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise QbenchError(
                f"{self.path}: results cannot be written here ({error.strerror}); choose a folder with --results"
            ) from error

    def _clear(self) -> None:
        derived = (*(f"{stem}.csv" for stem in TABLES), *(f"{stem}.jsonl" for stem in LINES))
        for name in (*FOLDERS, "run.json", "summary.csv", requests.FILE, *derived):
            remove(self.path / name)

    def check_reference(self, cells: Sequence[Backend], *, fresh: bool) -> None:
        """Make sure that the cells which `cells` lacks now will find what they are compared with.

        Raises:
            QbenchError: the 16-bit cell has left no log-probabilities here, or those of other files than now, and
                would not run.
        """
        reference = self._config.reference
        if reference is None or not (fresh or "perplexity" in self.missing(reference.label)):
            return
        missing = [cell for cell in cells if fresh or self.missing(cell.label)]
        if missing and reference not in missing:
            raise QbenchError(
                f"measure.perplexity.divergence: {missing[0].label} is compared with the cell {reference.label}, "
                f"whose log-probabilities are not in {self.reference.parent}, or of other files than now; "
                f"add --only {reference.label}, start over with --fresh, or leave it out with "
                "--set measure.perplexity.divergence=false"
            )

    def cell(self, label: str) -> Path:
        """Where a cell's worker writes."""
        return self.path / "cells" / label

    def _events(self, label: str) -> Path:
        return self.cell(label) / "events.jsonl"

    def kept(self, label: str) -> dict[str, UnitEvent]:
        """What was measured of a cell under the keys of now and by one kernel, the last, by unit, in their order."""
        found = read_units(self._events(label))
        kernel = last_kernel(self._events(label))
        return {
            name: found[name]
            for name, key in self.units[label].items()
            if name in found and found[name].key == key and found[name].kernel in (None, kernel)
        }

    def missing(self, label: str) -> list[str]:
        """The units of a cell that are not measured, or failed, or have lost a file of theirs."""
        kept = self.kept(label)
        return [
            name
            for name in self.units[label]
            if name not in kept or not kept[name].done or (kept[name].rows and self._lost(label, name))
        ]

    def _lost(self, label: str, unit: str) -> bool:
        return not all(file.is_file() for file in self._files(label, unit))

    def _files(self, label: str, unit: str) -> list[Path]:
        """What a unit leaves besides its rows."""
        reference = self._config.reference
        measure, _, part = unit.partition("/")
        if measure == "tasks":
            return [self.answers / task_file(label, part)]
        return {
            "mmlu": [self.answers / f"{label}.parquet"],
            "noise_floor": [self.answers / f"{label}{NOISE_SUFFIX}.parquet"],
            "perplexity": divergence.files(self.reference) if reference and reference.label == label else [],
        }.get(unit, [])

    def rows(self, label: str) -> list[Row]:
        """Everything kept of a cell."""
        found = [row for unit in self.kept(label).values() for row in unit.parsed()]
        return [starts.with_failures(row, found) if isinstance(row, CellRow) else row for row in found]

    def cell_row(self, label: str) -> CellRow | None:
        """The cell's own row, if its last worker came to its end."""
        return next((row for row in self.rows(label) if isinstance(row, CellRow)), None)

    def write_tables(self) -> None:
        """Derive the CSVs, and the files of lines for which there are rows, from the cells' events."""
        rows = [row for label in self.units for row in self.rows(label)]
        for stem, row_type in TABLES.items():
            write_table(self.path / f"{stem}.csv", row_type, [row for row in rows if type(row) is row_type])
        for stem, row_type in LINES.items():
            path, found = self.path / f"{stem}.jsonl", [row for row in rows if type(row) is row_type]
            if found or path.exists():
                write_lines(path, found)
        sent = [row for row in rows if isinstance(row, RequestRow)]
        if sent or (self.path / requests.FILE).exists():
            requests.write(self.path / requests.FILE, sent)

    def asked(self) -> dict[str, str]:
        """By measure or task, a hash of the questions that any cell was asked."""
        found: dict[str, set[tuple[str, str]]] = {}
        for label in self.units:
            for row in self.rows(label):
                if isinstance(row, AccuracyRow) and row.asked_sha256:
                    found.setdefault(row.task, set()).add((row.subject, row.asked_sha256))
        return {task: fingerprint.key({task: sorted(questions)}) for task, questions in found.items()}

    def write_record(self, record: RunRecord) -> None:
        """Write run.json."""
        write_record(self.path / "run.json", record, Redactor.here())


LOCK = ".lock"
OWNER = ".owner.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The system lets the lock go with its process, however that ends.

    Raises:
        QbenchError: a run is at work in it, or it cannot be written.
    """
    owner = folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise QbenchError(
            f"{folder}: another qbench run is at work here ({_describe(owner)}); wait for it, or choose another "
            "`name:` or --results"
        ) from error
    except OSError as error:
        raise QbenchError(
            f"{folder}: results cannot be written here ({error.strerror}); choose a folder with --results"
        ) from error
    try:
        write_atomically(owner, json.dumps({"pid": os.getpid(), "host": platform.node()}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError):  # it has only just begun
        return "its process is not known yet"
