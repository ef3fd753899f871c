"""What may be chosen: the cells of one or more runs with the figures of one batch size."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qbench.analysis.compare import noise_floor, reference_label
from qbench.analysis.effects import (  # fmt: skip
    PLAIN_CACHE,
    AccuracyDifference,
    Answered,
    accuracy_difference,
    answered,
    kept_in,
    workload,
)
from qbench.analysis.formulas import Flips
from qbench.analysis.stats import decode_trials, summarize
from qbench.analysis.validity import REASONS
from qbench.records.run import Run, display_label
from qbench.show.phrases import signed
from qbench.text import one_line


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cell at a batch size."""

    name: str
    """The backend as people read it, with its run where there are several."""
    folder: Path
    model: str
    backend: str
    label: str
    bits: float
    """Effective bits a weight; the nominal ones where they were not recorded."""
    memory_bytes: int | None
    """The larger of the peaks of the first forward (`cells.csv`) and of the trials at the batch size."""
    speeds: tuple[float, ...]
    """Decode tokens/s of the ok trials."""
    answered: Answered | None
    drop: AccuracyDifference | None
    """Against the 16-bit cell of its run."""
    is_reference: bool
    floor: Flips | None
    """The noise floor of its run."""
    failure: str
    """Why it cannot be chosen under any constraint; empty if it can."""
    caveats: tuple[str, ...]

    @property
    def speed(self) -> float | None:
        """Median of the trials, as in `summary.csv`."""
        return statistics.median(self.speeds) if self.speeds else None


def gather(runs: Sequence[Run], batch_size: int, *, allow_partial: bool = False) -> list[Candidate]:
    """The cells of all runs, in order."""
    names = _run_names(runs)
    return [
        _candidate(run, row, name, batch_size, allow_partial)
        for run, name in zip(runs, names, strict=True)
        for row in summarize(run, allow_partial=allow_partial).to_dict("records")
    ]


def notes(runs: Sequence[Run], batch_size: int) -> list[str]:
    """What makes the runs' figures differ besides the backends; empty for a single run."""
    works = {work for run in runs for label in run.cells["label"] if (work := workload(run, label, batch_size))}
    seen = {
        "models": {run.record.model for run in runs},
        "hardware": {run.record.hardware for run in runs},
        "lengths": {f"{prompt} prompt and {new} new tokens" for prompt, new in works},
        "caches": {f"keys and values in {kept_in(run, label)}" for run in runs for label in run.throughput["label"]},
    }
    return [f"different {what}: {one_line('; '.join(sorted(found)))}" for what, found in seen.items() if len(found) > 1]


def size(value: float) -> str:
    """Bytes to a hundredth of a MiB or GiB; without its space what `--max-memory` takes."""
    return f"{value / 2**20:.2f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"


def points(difference: AccuracyDifference) -> str:
    """`−0.12 points [−0.40, +0.15]`."""
    delta, low, high = (signed(100 * value, 2) for value in (difference.delta, difference.low, difference.high))
    return f"{delta} points [{low}, {high}]"


def _run_names(runs: Sequence[Run]) -> list[str]:
    """What to call each run beside a backend: nothing if there is one, its folder where names are not unique."""
    if len(runs) < 2:
        return [""] * len(runs)
    counts = Counter(run.record.name for run in runs)
    return [run.record.name if counts[run.record.name] == 1 else str(run.folder) for run in runs]


def _candidate(run: Run, row: Mapping[Any, Any], run_name: str, batch_size: int, allow_partial: bool) -> Candidate:
    label, reference = str(row["label"]), reference_label(run)
    cell = run.cells[run.cells["label"] == label].iloc[-1]
    own = answered(run, label, allow_partial=allow_partial)
    base = answered(run, reference, allow_partial=allow_partial) if reference and reference != label else None
    drop = accuracy_difference(base, own) if base and own else None
    name = one_line(display_label(str(row["backend"]), label))
    bits = cell["effective_bits_per_weight"]
    return Candidate(
        name=f"{name} ({one_line(run_name)})" if run_name else name,
        folder=run.folder,
        model=run.record.model,
        backend=str(row["backend"]),
        label=label,
        bits=float(cell["bits"] if pd.isna(bits) else bits),
        memory_bytes=_memory(run, cell, batch_size),
        speeds=tuple(decode_trials(run, label, batch_size)),
        answered=own,
        drop=drop,
        is_reference=label == reference,
        floor=noise_floor(run),
        failure=_failure(row, batch_size),
        caveats=tuple(_caveats(row, batch_size, drop, kept_in(run, label))),
    )


def _memory(run: Run, cell: pd.Series[Any], batch_size: int) -> int | None:
    rows = run.throughput
    rows = rows[(rows["label"] == cell["label"]) & (rows["batch_size"] == batch_size) & (rows["status"] == "ok")]
    peaks = [int(peak) for peak in (cell["peak_memory_bytes"], *rows["peak_memory_bytes"]) if not pd.isna(peak)]
    return max(peaks, default=None)


def _failure(row: Mapping[Any, Any], batch_size: int) -> str:
    if row["status"] != "ok":
        return one_line(f"{row['status']}: {row['error']}" if not pd.isna(row["error"]) else str(row["status"]))
    status = row.get(f"status_b{batch_size}", pd.NA)
    return "" if pd.isna(status) or status == "ok" else one_line(f"{status} at batch {batch_size}")


def _caveats(row: Mapping[Any, Any], batch_size: int, drop: AccuracyDifference | None, cache: str) -> list[str]:
    """What has to be said of a cell's figures whenever it is named."""
    found = []
    validity = row.get(f"validity_b{batch_size}", pd.NA)
    if not pd.isna(validity) and validity != "ok":
        words = [(one_line(word), REASONS.get(word, "see throughput.csv")) for word in str(validity).split("+")]
        found += [f"its speed is marked: {word}: {reason}" for word, reason in words]
    elif pd.isna(validity) and not pd.isna(row.get(f"decode_tokens_per_s_b{batch_size}", pd.NA)):
        found.append("the run does not say what its trials ran under")
    if not pd.isna(row["mmlu"]) and row["mmlu_partial"]:
        found.append(f"its accuracy is partial: {row['mmlu_n']:,} questions")
    if not pd.isna(row["mmlu"]) and cache != PLAIN_CACHE:
        found.append(f"its accuracy was measured with keys and values in 16 bit, its speed with {cache}")
    if drop and not drop.flips:
        found.append("its answers are not there, so that its accuracy is compared as of independent questions")
    return found
