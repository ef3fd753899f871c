"""What a run leaves behind: the folder with its record, tables and answers.

A worker appends every row to `cells/<label>/events.jsonl` the moment it exists. The tidy CSVs are derived from those
files, written whole to a temporary name and renamed, so that no reader ever meets half a table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.errors import QbenchError
from qbench.machine.environment import Environment, hardware_label
from qbench.records import csvtext
from qbench.records.answers import Answers, read_answers, read_task_answers
from qbench.records.files import write_atomically
from qbench.records.redact import Redactor
from qbench.records.rows import (
    TABLES,
    AccuracyRow,
    CellRow,
    LoadRow,
    NoiseRow,
    PerplexityRow,
    Row,
    SustainedRow,
    ThroughputRow,
)

if TYPE_CHECKING:  # pandas takes longer to import than a run to read
    import pandas as pd

RowT = TypeVar("RowT", bound=Row)
"""A class of rows."""


class RunRecord(BaseModel):
    """`run.json`: what was asked for, where it ran and with which software."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: str
    command: str
    config: dict[str, Any]
    """The configuration as parsed, every default filled in."""
    model_fingerprint: str
    facts: dict[str, Any] = {}
    """What the figures depend on, see `qbench.run.fingerprint`."""
    asked: dict[str, str] = {}
    """By measure or task, a hash of its questions as they were asked; written when the run ends."""
    order: tuple[str, ...] = ()
    """The cells as they were run, by label."""
    environment: Environment
    started: datetime
    finished: datetime | None = None

    @property
    def hardware(self) -> str:
        """What it was measured on, in one phrase."""
        return hardware_label(self.environment, str(self.config.get("device", "auto")))


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back from its folder, its tables row by row."""

    folder: Path
    record: RunRecord
    cells: tuple[CellRow, ...]
    """One a label."""
    throughput: tuple[ThroughputRow, ...] = ()
    accuracy: tuple[AccuracyRow, ...] = ()
    perplexity: tuple[PerplexityRow, ...] = ()
    noise: tuple[NoiseRow, ...] = ()
    sustained: tuple[SustainedRow, ...] = ()
    load: tuple[LoadRow, ...] = ()
    answers: dict[str, Answers] = field(default_factory=dict)
    """By label, to the questions of MMLU; see `qbench.records.answers`."""
    task_answers: dict[str, dict[str, Answers]] = field(default_factory=dict)
    """By task and label, to the questions of measure.tasks."""
    warnings: tuple[str, ...] = ()
    """What is missing or damaged in the folder."""

    @property
    def reference(self) -> str | None:
        """Label of the cell that others are compared with: the first that is not quantized; None if there is none."""
        plain = (cell for cell in self.cells if (cell.bits or 0) >= 16 and cell.kv_cache in (None, "16bit"))
        return next((cell.label for cell in plain), None)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The machines that measured its cells, sorted; empty where that was not recorded."""
        return tuple(sorted({cell.host for cell in self.cells if cell.host}))


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        QbenchError: `folder` does not exist, is empty, or is not a run's.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise QbenchError(f"{folder}: no run.json, so this is not a run's folder; `qbench run CONFIG` makes one")
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        wrong = error.error_count()
        raise QbenchError(f"{path}: not written by qbench, or damaged ({wrong} fields are wrong)") from error
    tables: dict[str, tuple[Any, ...]] = {}
    warnings: list[str] = []
    for stem, row_type in TABLES.items():
        if (table := folder / f"{stem}.csv").is_file():
            rows, found = read_table(table, row_type)
            tables[stem] = tuple(rows)
            warnings += found
    # Of a cell that is there twice, the last counts.
    cells = tuple({row.label: row for row in tables.pop("cells", ())}.values())
    answers, found = read_answers(folder, tables.get("accuracy", ()))
    task_answers, lacking = read_task_answers(folder, tables.get("accuracy", ()))
    return Run(
        folder=folder,
        record=record,
        cells=cells,
        **tables,
        answers=answers,
        task_answers=task_answers,
        warnings=(*warnings, *found, *lacking),
    )


def find_runs(folder: Path) -> list[Path]:
    """`folder` if it is a run's, else the runs directly in it, sorted; `published/` is a folder of runs of its own.

    Raises:
        QbenchError: there is none.
    """
    if not folder.is_dir():
        raise QbenchError(f"{folder}: no such folder; give a run's folder or one that holds runs, e.g. results/")
    if (folder / "run.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    if not found:
        raise QbenchError(
            f"{folder}: no run here (no run.json in it or one folder below); `qbench run CONFIG` makes one"
        )
    return found


def display_label(backend: str, label: str) -> str:
    """What people read: FP16 for the cell fp16 of the backend fp16, a label of its own as it is."""
    return backend.upper() if backend == label else label


def write_table(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write rows as a CSV whose columns are the fields of their type; see `qbench.records.csvtext`."""
    write_atomically(path, csvtext.to_text(row_type.model_fields, (row.model_dump(mode="json") for row in rows)))


def write_record(path: Path, record: RunRecord, redactor: Redactor) -> None:
    """Write a run's record without secrets and home folders."""
    write_atomically(path, json.dumps(redactor.value(record.model_dump(mode="json")), indent=2) + "\n")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame as a CSV, texts as `write_table` writes them."""
    guarded = frame.copy()
    for name in frame.select_dtypes(["object", "string"]):
        guarded[name] = frame[name].map(csvtext.guard)
    text: str = guarded.to_csv(index=False, lineterminator="\n")
    write_atomically(path, text)


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a JSON object a line; None is null."""
    write_atomically(path, "".join(row.model_dump_json() + "\n" for row in rows))


def read_table(path: Path, row_type: type[RowT]) -> tuple[list[RowT], list[str]]:
    """Read a CSV of `row_type`, leaving out lines that are not rows.

    Returns:
        The rows, and one warning for each line left out, such as a last line that was cut short.

    Columns that were not there yet when an older version wrote the table are missing values.

    Raises:
        QbenchError: the header is not that of the table.
    """
    warnings: list[str] = []
    rows: list[RowT] = []
    columns = row_type.model_fields
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != [name for name, field in columns.items() if name in header or field.is_required()]:
            raise QbenchError(f"{path}: these are not the columns of a qbench table; is it from another tool?")
        for number, fields in enumerate(reader, start=2):
            try:
                given = {key: csvtext.unguard(value) for key, value in zip(header, fields, strict=True) if value != ""}
                rows.append(row_type.model_validate(given))
            except ValueError:
                warnings.append(f"{path}: line {number} is damaged or incomplete and is left out")
    return rows, warnings
