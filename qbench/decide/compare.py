"""Two runs of a model, cell by cell: what changed, and whether that is more than chance. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qbench.analysis.effects import (  # fmt: skip
    AccuracyDifference,
    SpeedRatio,
    accuracy_difference,
    answered,
    kept_in,
    section,
    speed_ratio,
    workload,
)
from qbench.analysis.paired import holm
from qbench.analysis.stats import batch_sizes, decode_trials, summarize
from qbench.decide.provenance import Difference, differences
from qbench.records.run import Run, display_label
from qbench.text import one_line


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """A cell at a batch size."""

    batch_size: int
    first_status: str | None
    second_status: str | None
    """ok, or what went wrong in some trial; None if there is none."""
    first: float | None
    second: float | None
    """Median decode tokens/s; None unless the status is ok."""
    ratio: SpeedRatio | None
    """The second over the first; None without both, or if they generated other lengths."""
    remarks: tuple[str, ...]
    """Failures, and what its trials ran under, if that was not as it should be."""


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """A cell's peaks: of the first forward, or of the trials at a batch size."""

    batch_size: int | None
    first_bytes: int | None
    second_bytes: int | None
    comparable: bool
    """Whether both were of the same lengths."""


@dataclass(frozen=True, slots=True)
class CellChange:
    """A cell that both runs have."""

    name: str
    label: str
    first_status: str
    second_status: str
    memories: tuple[MemoryChange, ...]
    speeds: tuple[SpeedChange, ...]
    first_accuracy: float | None
    second_accuracy: float | None
    accuracy: AccuracyDifference | None
    p_holm: float | None
    """Corrected over all cells."""
    first_perplexity: float | None
    second_perplexity: float | None
    first_kl: float | None
    second_kl: float | None
    """Mean divergence from the run's own 16-bit cell, in nats."""


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The second run against the first."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    cells: tuple[CellChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    """Cells by label."""


def compare_runs(first: Run, second: Run, *, confidence: float = 0.95, allow_partial: bool = False) -> RunComparison:
    """Compare the cells that have the same label. Intervals are those of `qbench.analysis.effects`, each by itself."""
    rows = [_rows(run, allow_partial) for run in (first, second)]
    common = [label for label in rows[0] if label in rows[1]]
    found = [answered_difference(first, second, label, confidence, allow_partial) for label in common]
    p_values = iter(holm([difference.p_value for difference in found if difference]))
    cells = [
        _cell(
            first,
            second,
            rows[0][label],
            rows[1][label],
            difference,
            next(p_values) if difference else None,
            confidence,
        )
        for label, difference in zip(common, found, strict=True)
    ]
    return RunComparison(
        first=str(first.folder),
        second=str(second.folder),
        differences=tuple(differences(first.record, second.record)),
        cells=tuple(cells),
        only_first=tuple(label for label in rows[0] if label not in rows[1]),
        only_second=tuple(label for label in rows[1] if label not in rows[0]),
    )


def answered_difference(
    first: Run, second: Run, label: str, confidence: float, allow_partial: bool
) -> AccuracyDifference | None:
    """Of a cell's accuracies in two runs; None if one of them has none, or they answered other questions."""
    one, other = (answered(run, label, allow_partial=allow_partial) for run in (first, second))
    return accuracy_difference(one, other, confidence) if one and other else None


def _rows(run: Run, allow_partial: bool) -> dict[str, dict[Any, Any]]:
    return {str(row["label"]): row for row in summarize(run, allow_partial=allow_partial).to_dict("records")}


def _cell(
    first: Run,
    second: Run,
    one: Mapping[Any, Any],
    other: Mapping[Any, Any],
    accuracy: AccuracyDifference | None,
    p_holm: float | None,
    confidence: float,
) -> CellChange:
    label = str(one["label"])
    sizes = sorted({*batch_sizes(first), *batch_sizes(second)})
    speeds = (_speed(first, second, one, other, size, confidence) for size in sizes)
    return CellChange(
        name=one_line(display_label(str(one["backend"]), label)),
        label=label,
        first_status=one_line(str(one["status"])),
        second_status=one_line(str(other["status"])),
        memories=tuple(_memories(first, second, one, other, sizes)),
        speeds=tuple(change for change in speeds if change),
        first_accuracy=_number(one["mmlu"]),
        second_accuracy=_number(other["mmlu"]),
        accuracy=accuracy,
        p_holm=p_holm,
        first_perplexity=_number(one["perplexity"]),
        second_perplexity=_number(other["perplexity"]),
        first_kl=_number(one["kl_mean"]),
        second_kl=_number(other["kl_mean"]),
    )


def _memories(
    first: Run, second: Run, one: Mapping[Any, Any], other: Mapping[Any, Any], sizes: Sequence[int]
) -> Iterator[MemoryChange]:
    """What at least one of the runs has measured."""
    label, peaks = str(one["label"]), [_number(row["peak_memory_bytes"]) for row in (one, other)]
    lengths = [section(run, "memory") for run in (first, second)]
    found: list[tuple[int | None, list[float | None], bool]] = [(None, peaks, lengths[0] == lengths[1])]
    for size in sizes:
        works = [workload(run, label, size) for run in (first, second)]
        found.append((size, [_peak(run, label, size) for run in (first, second)], works[0] == works[1]))
    for batch_size, (before, after), comparable in found:
        if before is not None or after is not None:
            yield MemoryChange(batch_size, _whole(before), _whole(after), comparable or None in (before, after))


def _peak(run: Run, label: str, size: int) -> float | None:
    """The most of any ok trial."""
    rows = run.throughput
    rows = rows[(rows["label"] == label) & (rows["batch_size"] == size) & (rows["status"] == "ok")]
    return _number(rows["peak_memory_bytes"].max())


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _speed(
    first: Run, second: Run, one: Mapping[Any, Any], other: Mapping[Any, Any], size: int, confidence: float
) -> SpeedChange | None:
    """None if neither run has trials of the cell at the batch size."""
    label = str(one["label"])
    works = [workload(run, label, size) for run in (first, second)]
    if not any(works):
        return None
    statuses = [_status(row, size) for row in (one, other)]
    trials = [
        decode_trials(run, label, size) if status == "ok" else []
        for run, status in zip((first, second), statuses, strict=True)
    ]
    remarks = [f"{which}: {word}" for which, row in (("A", one), ("B", other)) if (word := _remark(row, size))]
    caches = [kept_in(run, label) for run in (first, second)]
    if caches[0] != caches[1] and None not in works:
        remarks.append(f"keys and values in {caches[0]} and {caches[1]}")
    comparable = works[0] == works[1] or None in works
    if not comparable:
        remarks.append("they generated other lengths")
    medians = [statistics.median(found) if found else None for found in trials]
    ratio = speed_ratio(trials[0], trials[1], confidence) if all(trials) and comparable else None
    return SpeedChange(size, statuses[0], statuses[1], medians[0], medians[1], ratio, tuple(remarks))


def _status(row: Mapping[Any, Any], size: int) -> str | None:
    status = row.get(f"status_b{size}", pd.NA)
    return None if pd.isna(status) else one_line(str(status))


def _remark(row: Mapping[Any, Any], size: int) -> str:
    """What went wrong, or why the figure is marked."""
    status, validity = _status(row, size), row.get(f"validity_b{size}", pd.NA)
    if status != "ok":
        return status or "not measured"
    return "" if pd.isna(validity) or validity == "ok" else f"marked {one_line(str(validity))}"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
