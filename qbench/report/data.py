"""From a run to plain records: everything that the page and BENCHMARK.md say of it, without pandas or style."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import ValidationError

from qbench import bandwidth, hindsight, trust
from qbench.bandwidth import Bandwidth
from qbench.compare import reference_label, tied
from qbench.environment import hardware_label
from qbench.errors import QbenchError
from qbench.report import facts
from qbench.report.facts import Record
from qbench.report.subjects import Subject, subjects
from qbench.results import Run, display_label
from qbench.stats import batch_sizes, decode_trials, summarize
from qbench.verdict import accuracy_words, speedup_words, sustained_words

LATENCIES = ("ttft_s", "itl_p50_s", "itl_p95_s")
"""Columns of a trial."""

ONE_BYTE_A_SECOND = Bandwidth(1.0, "a unit")
"""With it, a ceiling in tokens/s is the tokens that reading one byte makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A cell at one batch size: medians over its ok trials, in seconds and bytes."""

    batch_size: int
    status: str | None
    """ok, or what went wrong in some trial; None where nothing was tried."""
    tokens_per_s: float | None
    low: float | None
    """Slowest and fastest trial."""
    high: float | None
    validity: str | None
    """ok, or why the speed is not to be trusted, joined by `+`; None where that was not recorded: `qbench.trust`."""
    speedup: str
    """Over the 16-bit cell, in words."""
    ttft_s: float | None
    itl_p50_s: float | None
    itl_p95_s: float | None
    peak_memory_bytes: int | None
    """The most of any trial."""
    predicted_bytes: int | None
    ceiling_tokens_per_s: float | None
    """What the machine's bandwidth allows at most, see `qbench.forecast.ceiling`; None where that is not known."""
    read_bytes_per_s: float | None
    """Bytes of weights and cache that a decode step reads ÷ the step's time (batch_size ÷ tokens_per_s)."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the speed is not to be trusted, in words; none if it is, or if nothing is known."""
        return () if self.validity in (None, "ok") else tuple(str(self.validity).replace("_", " ").split("+"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Of a cell, as fractions, with a 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int
    partial: bool
    difference: str
    """To the 16-bit cell, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One backend of a run."""

    name: str
    """What people read; unique in its run."""
    label: str
    kind: str
    status: str
    error: str | None
    kernel: str | None
    bits_per_weight: float | None
    weight_bytes: int | None
    load_s: float | None
    quantize_s: float | None
    peak_memory_bytes: int | None
    peak_rss_bytes: int | None
    predicted_bytes: int | None
    accuracy: Accuracy | None
    perplexity: float | None
    kl_mean: float | None
    kl_stderr: float | None
    top1_agreement: float | None
    sustained: str
    """Speed under sustained load, in words."""
    speeds: tuple[Speed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as it is reported."""

    title: str
    """Its name; unique among the runs of a report."""
    model: str
    machine: str
    dtype: str
    day: str
    """When it started, UTC."""
    commands: tuple[str, ...]
    """That measure it again, on a machine like its own."""
    configuration: str
    """As parsed, with every default, as JSON."""
    environment: tuple[tuple[str, str], ...]
    batch_sizes: tuple[int, ...]
    cells: tuple[Cell, ...]
    subjects: tuple[Subject, ...]
    reference: str | None
    """Name of the 16-bit cell that others are compared with."""
    ties: frozenset[frozenset[str]]
    """Pairs of names whose accuracies do not differ, see `qbench.compare.tied`."""
    settings: Mapping[str, str]
    """By measure (memory, throughput, mmlu), under which conditions it was taken."""
    bandwidth: Bandwidth | None
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    """What the report lacks, and why."""


def collect(
    run: Run, *, title: str | None = None, allow_partial: bool = False, speed: Bandwidth | None = None
) -> RunReport:
    """Everything that is reported of a run.

    Args:
        title: the run's name unless given.
        allow_partial: also accuracies and divergences over part of the questions or text.
        speed: of the machine that was measured, where the caller knows it; else the data sheet of the GPU that
            run.json names. A CPU's bandwidth is in no file of a run and is left out.
    """
    record, notes = run.record, list[str]()
    speed = speed or _bandwidth(run, notes)
    predictions = _predictions(run, speed, notes)
    summary = [_known(row) for row in summarize(run, allow_partial=allow_partial).to_dict("records")]
    cells = [_cell(run, row, predictions, allow_partial) for row in summary]
    names = {cell.label: cell.name for cell in cells}
    reference = reference_label(run)
    answered = [cell.label for cell in cells if cell.accuracy]
    found = subjects(run, reference, answered, names) if reference else ()
    notes += facts.unreported(run, summary, allow_partial)
    dtypes = sorted({str(dtype) for dtype in run.cells["dtype"].dropna()}) or [str(record.config.get("dtype", ""))]
    return RunReport(
        title=title or record.name,
        model=record.model,
        machine=hardware_label(record.environment),
        dtype="/".join(dtypes),
        day=f"{record.started:%Y-%m-%d}",
        commands=tuple(facts.commands(record)),
        configuration=json.dumps(record.config, indent=2, ensure_ascii=False),
        environment=tuple(facts.environment(record.environment)),
        batch_sizes=tuple(batch_sizes(run)),
        cells=tuple(cells),
        subjects=found,
        reference=names.get(reference) if reference else None,
        ties=frozenset(frozenset(names[label] for label in pair) for pair in tied(run, answered)),
        settings=facts.settings(run, summary),
        bandwidth=speed,
        failures=tuple(facts.failures(run, names)),
        doubts=(*trust.remarks(summary, batch_sizes(run)), *run.warnings),
        notes=tuple(notes),
    )


def _known(row: Mapping[Any, Any]) -> Record:
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}


def _last(frame: pd.DataFrame, label: str) -> Record:
    """The last row of a cell; empty if it has none."""
    rows = frame[frame["label"] == label].to_dict("records")
    return _known(rows[-1]) if rows else {}


def _cell(run: Run, row: Record, predictions: Mapping[tuple[str, int | None], Record], allow_partial: bool) -> Cell:
    label, cell = row["label"], _last(run.cells, row["label"])
    text = _last(run.perplexity, label)
    if text.get("partial") and not allow_partial:
        text = {}
    fields = ("error", "kernel", "weight_bytes", "load_s", "quantize_s", "peak_memory_bytes", "peak_rss_bytes")
    return Cell(
        name=display_label(row["backend"], label),
        label=label,
        kind=row["backend"],
        status=row["status"],
        **{field: cell.get(field) for field in fields},
        bits_per_weight=cell.get("effective_bits_per_weight"),
        predicted_bytes=predictions.get((label, None), {}).get("predicted_bytes"),
        accuracy=_accuracy(row),
        **{field: text.get(field) for field in ("perplexity", "kl_mean", "kl_stderr", "top1_agreement")},
        sustained=sustained_words(row),
        speeds=tuple(_speed(run, row, size, predictions.get((label, size), {})) for size in batch_sizes(run)),
    )


def _accuracy(row: Record) -> Accuracy | None:
    if row["mmlu"] is None:
        return None
    return Accuracy(
        value=row["mmlu"],
        low=row["mmlu_ci_low"],
        high=row["mmlu_ci_high"],
        n=row["mmlu_n"],
        partial=row["mmlu_partial"],
        difference=accuracy_words(row),
    )


def _speed(run: Run, row: Record, size: int, predicted: Record) -> Speed:
    trials = run.throughput[(run.throughput["label"] == row["label"]) & (run.throughput["batch_size"] == size)]
    trials = trials[trials["status"] == "ok"]
    known = {column: [float(value) for value in trials[column].dropna()] for column in LATENCIES}
    peaks = [int(value) for value in trials["peak_memory_bytes"].dropna()]
    speeds = decode_trials(run, row["label"], size)
    tokens_per_s, tokens_a_byte = row[f"decode_tokens_per_s_b{size}"], predicted.get("tokens_a_byte")
    return Speed(
        batch_size=size,
        status=row[f"status_b{size}"],
        tokens_per_s=tokens_per_s,
        low=min(speeds, default=None),
        high=max(speeds, default=None),
        validity=row[f"validity_b{size}"],
        speedup=speedup_words(row, size),
        **{column: statistics.median(values) if values else None for column, values in known.items()},
        peak_memory_bytes=max(peaks, default=None),
        predicted_bytes=predicted.get("predicted_bytes"),
        ceiling_tokens_per_s=predicted.get("predicted_tokens_per_s"),
        read_bytes_per_s=tokens_per_s / tokens_a_byte if tokens_per_s and tokens_a_byte else None,
    )


def _bandwidth(run: Run, notes: list[str]) -> Bandwidth | None:
    """Of the GPU, by its data sheet; None, with a note, where the run's files do not tell it."""
    devices, gpus = set(run.cells["device"].dropna()), run.record.environment.gpus
    if run.cells["host"].nunique() > 1:
        notes.append("bandwidth ceiling left out: the cells were measured on several machines")
        return None
    if any(str(device).startswith("cuda") for device in devices) and gpus:
        found = bandwidth.of_gpu(gpus[0].name)
        if found is None:
            notes.append(f"bandwidth ceiling left out: no data sheet of {gpus[0].name} is known; give --bandwidth")
        return found
    notes.append("bandwidth ceiling left out: a run does not record a CPU's read bandwidth; give --bandwidth")
    return None


def _predictions(run: Run, speed: Bandwidth | None, notes: list[str]) -> dict[tuple[str, int | None], Record]:
    """By label and batch size, peak, ceiling and tokens a byte; of the first forward under None."""
    try:
        rows = hindsight.compare(run, speed).to_dict("records")
        units = hindsight.compare(run, ONE_BYTE_A_SECOND)["predicted_tokens_per_s"]
    except (QbenchError, ValidationError) as error:
        reason = "its configuration is of another version" if isinstance(error, ValidationError) else str(error)
        notes.append(f"predictions and bandwidth left out: {reason}")
        return {}
    found = {}
    for row, unit in zip(rows, units, strict=True):
        size = None if row["measure"] == "memory" else int(row["batch_size"])
        found[row["label"], size] = _known(row | {"tokens_a_byte": unit})
    return found
