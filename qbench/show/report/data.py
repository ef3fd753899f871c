"""From a run to records: everything that the page and BENCHMARK.md say of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pydantic import ValidationError

from qbench.analysis import validity
from qbench.analysis.compare import reference_label, tied
from qbench.analysis.stats import batch_sizes, decode_trials, summarize
from qbench.errors import QbenchError
from qbench.machine import bandwidth
from qbench.machine.bandwidth import Bandwidth
from qbench.plan import backtest
from qbench.records.redact import Redactor
from qbench.records.run import Run, display_label
from qbench.show.phrases import accuracy_words, speedup_words
from qbench.show.report import facts
from qbench.show.report.facts import Record
from qbench.show.report.records import Accuracy, Cell, RunReport, Speed, Sustained, doubts
from qbench.show.report.subjects import subjects

LATENCIES = ("ttft_s", "itl_p50_s", "itl_p95_s")
"""Columns of a trial."""

ONE_BYTE_A_SECOND = Bandwidth(1.0, "a unit")
"""With it, a ceiling in tokens/s is the tokens that reading one byte makes."""


def collect(
    run: Run, *, title: str | None = None, allow_partial: bool = False, speed: Bandwidth | None = None
) -> RunReport:
    """Everything that is reported of a run.

    Args:
        title: the run's name unless given.
        allow_partial: also accuracies and divergences over part of the questions or text.
        speed: of the machine that was measured, where the caller knows it; else that of the data sheet of the GPU
            that run.json names, or on a CPU the fastest that the run's workers have read.
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
        machine=record.hardware,
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
        tried=facts.tried(run),
        failures=tuple(facts.failures(run, names)),
        doubts=(*validity.remarks(summary, batch_sizes(run)), *(Redactor.here().text(text) for text in run.warnings)),
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
        **{field: text.get(field) for field in ("perplexity", "kl_mean", "kl_stderr")},
        sustained=_sustained(run, row),
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


def _sustained(run: Run, row: Record) -> Sustained | None:
    windows = run.sustained[run.sustained["label"] == row["label"]].to_dict("records")
    if not windows:
        return None
    return Sustained(
        windows=tuple(
            (float(one["t_s"]), float(one["tokens_per_s"]), doubts(_known(one)["validity"])) for one in windows
        ),
        steady=row["sustained_tokens_per_s"],
        peak=row["sustained_peak_tokens_per_s"],
        validity=row["sustained_validity"],
    )


def _bandwidth(run: Run, notes: list[str]) -> Bandwidth | None:
    """Of the GPU, by its data sheet, or as measured in the run; None, with a note, where its files do not tell it."""
    gpus = sorted(set(run.cells["device"].dropna()) - {"cpu"})
    if run.cells["host"].nunique() > 1:
        notes.append("bandwidth ceiling left out: the cells were measured on several machines")
        return None
    if gpus:
        found = bandwidth.of_gpu(gpus[0]) if len(gpus) == 1 else None
        if found is None:
            notes.append(
                f"bandwidth ceiling left out: no data sheet of {' and '.join(gpus)} is known; give --bandwidth"
            )
        return found
    readings = run.cells["read_bytes_per_s"].dropna()
    if not readings.empty:
        return Bandwidth(float(readings.max()), f"fastest of {len(readings)} readings, one before each cell")
    notes.append("bandwidth ceiling left out: this run did not record how fast its CPU reads; give --bandwidth")
    return None


def _predictions(run: Run, speed: Bandwidth | None, notes: list[str]) -> dict[tuple[str, int | None], Record]:
    """By label and batch size, peak, ceiling and tokens a byte; of the first forward under None."""
    try:
        rows = backtest.compare(run, speed).to_dict("records")
        units = backtest.compare(run, ONE_BYTE_A_SECOND)["predicted_tokens_per_s"]
    except (QbenchError, ValidationError) as error:
        unread = "its configuration names what this installation of qbench does not know"
        reason = unread if isinstance(error, ValidationError) else str(error)
        notes.append(f"predictions and bandwidth left out: {reason}")
        return {}
    found = {}
    for row, unit in zip(rows, units, strict=True):
        size = None if row["measure"] == "memory" else int(row["batch_size"])
        found[row["label"], size] = _known(row | {"tokens_a_byte": unit})
    return found
