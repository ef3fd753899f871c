"""What a run leaves behind: the row types, and the folder that holds them.

A worker appends every row to `cells/<label>/events.jsonl` the moment it exists. The tidy CSVs are derived from those
files, written whole to a temporary name and renamed, so that no reader ever meets half a table.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.answers import read_answers
from qbench.environment import Environment
from qbench.errors import QbenchError

Status = Literal["ok", "oom", "error", "crashed", "timeout", "unavailable"]


class Identity(TypedDict):
    """The columns that say whose row it is."""

    run: str
    model: str
    backend: str
    label: str


class Row(BaseModel):
    """One observation of one cell. The field order is the column order. Seconds and bytes; a missing value is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    model: str
    backend: str
    """Kind of the backend: fp16, int4, …"""
    label: str
    """The cell, unique in its run."""


class CellRow(Row):
    """One (model, backend) pair, and what loading it cost."""

    bits: int
    group_size: int | None = None
    status: Status
    error: str | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str | None = None
    decode_mode: str | None = None
    threads: int | None = None
    quantized_layers: int | None = None
    expected_layers: int | None = None
    lm_head_bits: int | None = None
    load_s: float | None = None
    quantize_s: float | None = None
    weight_bytes: int | None = None
    effective_bits_per_weight: float | None = None
    load_peak_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_rss_bytes: int | None = None
    calibration_sha256: str | None = None


class MemoryRow(Row):
    """Peak memory of the first forward after loading; joined into `cells.csv`."""

    batch_size: int
    seq_len: int
    peak_memory_bytes: int


class ThroughputRow(Row):
    """One timed generation."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    decode_mode: str
    trial: int
    status: Status
    error: str | None = None
    ttft_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    peak_memory_bytes: int | None = None


class AccuracyRow(Row):
    """One subject of one task."""

    task: str
    subject: str
    num_fewshot: int
    n: int
    correct: int
    accuracy: float
    stderr: float | None = None
    partial: bool
    wall_s: float | None = None
    """Wall time of the whole task, the same in each of its rows."""


class NoiseRow(Row):
    """The cell's MMLU evaluated again at another batch size: what numerics alone move."""

    batch_size: int
    repeat_batch_size: int
    n: int
    changed_answers: int
    """Questions with another prediction, right or wrong."""
    right_to_wrong: int
    wrong_to_right: int
    accuracy_delta: float
    """Second evaluation − first, a fraction."""
    logprob_delta_max: float
    """Largest |difference| of a choice's log-probability, in nats."""
    partial: bool
    wall_s: float


class PerplexityRow(Row):
    """A text of a cell. Standard errors are over windows, see `qbench.stats.mean_of_windows`.

    The divergence columns compare with the 16-bit cell, token by token, in nats (see `qbench.measure.divergence`). They
    are empty in the 16-bit cell's own row, where there is nothing to compare.
    """

    dataset: str
    window: int
    """Tokens."""
    n_tokens: int
    """Tokens predicted: all but the first of each window."""
    perplexity: float
    """exp(nll_mean)."""
    nll_mean: float
    """Mean of -log p(token), in nats."""
    nll_stderr: float | None = None
    kl_mean: float | None = None
    """Mean of KL(16-bit || this cell)."""
    kl_stderr: float | None = None
    kl_p99: float | None = None
    """99th percentile over tokens."""
    top1_agreement: float | None = None
    """Share of the tokens after which the 16-bit cell's most probable token is this cell's, too."""
    top1_stderr: float | None = None
    delta_logprob_mean: float | None = None
    """Mean of log p(token) less the 16-bit cell's: the perplexities' ratio is exp(-delta_logprob_mean)."""
    delta_logprob_stderr: float | None = None
    top_k: int | None = None
    """Tokens of the 16-bit cell's predictions that KL looks at one by one."""
    partial: bool
    wall_s: float


class GenerationRow(Row):
    """How a cell goes on with a prompt, greedily."""

    prompt: str
    text: str
    """The continuation alone."""
    token_ids: tuple[int, ...]
    """Its tokens."""


TABLES: dict[str, type[Row]] = {
    "cells": CellRow,
    "throughput": ThroughputRow,
    "accuracy": AccuracyRow,
    "noise": NoiseRow,
    "perplexity": PerplexityRow,
}
"""The CSV files of a run, by stem."""

LINES: dict[str, type[Row]] = {"generations": GenerationRow}
"""The files of a run with a JSON object a line, by stem: rows with text."""

_ROW_TYPES: tuple[type[Row], ...] = (MemoryRow, *TABLES.values(), *LINES.values())
ROW_TYPES = {row_type.__name__: row_type for row_type in _ROW_TYPES}
"""Every row that a worker may write, by name."""


class RunRecord(BaseModel):
    """`run.json`: what was asked for, where it ran and with which software."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: str
    command: str
    config: dict[str, Any]
    """The configuration as parsed, every default filled in."""
    model_fingerprint: str
    environment: Environment
    started: datetime
    finished: datetime | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back from its folder. Frames have the columns of their row types; missing values are NA."""

    folder: Path
    record: RunRecord
    cells: pd.DataFrame
    throughput: pd.DataFrame
    accuracy: pd.DataFrame
    perplexity: pd.DataFrame
    warnings: tuple[str, ...]
    noise: pd.DataFrame = field(default_factory=lambda: to_frame(NoiseRow, []))
    answers: dict[str, pd.Series[bool]] = field(default_factory=dict)
    """By label, whether the cell is right, indexed by (subject, question_id); see `qbench.answers`."""


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
    frames: dict[str, pd.DataFrame] = {}
    warnings: list[str] = []
    for stem, row_type in TABLES.items():
        table = folder / f"{stem}.csv"
        if table.is_file():
            frames[stem], found = read_table(table, row_type)
            warnings += found
        else:
            frames[stem] = to_frame(row_type, [])
    answers, found = read_answers(folder, frames["accuracy"])
    warnings += found
    return Run(folder=folder, record=record, **frames, warnings=tuple(warnings), answers=answers)


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


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all.

    Raises:
        OSError: the folder is not writable or the disk is full; the old content still stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_table(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write rows as a CSV whose columns are the fields of their type; None is an empty field."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row_type.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.model_dump(mode="json") for row in rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a JSON object a line; None is null."""
    write_atomically(path, "".join(row.model_dump_json() + "\n" for row in rows))


def read_table(path: Path, row_type: type[Row]) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV of `row_type`, leaving out lines that are not rows.

    Returns:
        The rows as a data frame with every column of the type (missing values are NA), and one warning for each line
        left out, such as a last line that was cut short.

    Columns that were not there yet when an older version wrote the table are missing values.

    Raises:
        QbenchError: the header is not that of the table.
    """
    warnings: list[str] = []
    rows: list[Row] = []
    columns = row_type.model_fields
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != [name for name, field in columns.items() if name in header or field.is_required()]:
            raise QbenchError(f"{path}: these are not the columns of a qbench table; is it from another tool?")
        for number, fields in enumerate(reader, start=2):
            try:
                given = {key: value for key, value in zip(header, fields, strict=True) if value != ""}
                rows.append(row_type.model_validate(given))
            except ValueError:
                warnings.append(f"{path}: line {number} is damaged or incomplete and is left out")
    return to_frame(row_type, rows), warnings


def to_frame(row_type: type[Row], rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a data frame with the columns of their type, in order, also when there is no row."""
    frame = pd.DataFrame([row.model_dump() for row in rows], columns=list(row_type.model_fields))
    return frame.convert_dtypes()
