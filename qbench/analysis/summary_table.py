"""`summary.csv`: a row of figures for each cell of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import CellSummary, RunSummary, Speed
from qbench.analysis.summary import summarize
from qbench.records.run import read_run, write_frame

TEXTS = (
    *("run", "model", "backend", "label", "status", "error", "sustained_validity", "mmlu_verdict"),
    *("goodput_level", "load_validity"),
)
COUNTS = ("peak_memory_bytes", "mmlu_n", "mmlu_paired_n", "mmlu_right_to_wrong", "mmlu_wrong_to_right")
FLAGS = ("mmlu_partial", "mmlu_below_noise_floor")


def write_summary(folder: Path, margin: float = MARGIN) -> None:
    """Derive a run's summary.csv from its tables; limited evaluations stay out of it. `margin` as of `summarize`."""
    write_frame(folder / "summary.csv", to_frame(summarize(read_run(folder), margin=margin)))


def to_frame(summary: RunSummary) -> pd.DataFrame:
    """One row a cell; what was not measured is NA.

    For each batch size n, `decode_tokens_per_s_b<n>` is the median over the ok trials, `joules_per_token_b<n>` that of
    those whose energy was counted, `status_b<n>` is ok or what went wrong in some trial, `validity_b<n>` is ok or why
    the figure is not to be trusted, and `speedup_b<n>` is the ratio to the reference with its 95 % interval. `mmlu` is
    sum(correct) ÷ sum(n), a fraction, with its Wilson interval; `mmlu_delta` the difference from the reference over the
    `mmlu_paired_n` questions that both answered, with its interval (those of all cells hold together with 95 %),
    McNemar's p-value and that value after Holm's correction over all cells compared. `mmlu_verdict` is worse, better,
    no_worse (than by `mmlu_margin`) or inconclusive, `mmlu_detectable` the smallest difference that these questions
    would have shown, see `qbench.analysis.paired`.
    Of a server under load, the most output tokens a second and the highest goodput of any level, and the highest rate
    that a search has found to keep the objective.
    """
    sizes = summary.batch_sizes
    rows = [_row(cell, sizes) for cell in summary.cells]
    columns = list(_row(None, sizes))
    return pd.DataFrame(rows, columns=columns).astype({column: _dtype(column) for column in columns})


def _dtype(column: str) -> str:
    if column in TEXTS or column.startswith(("status_b", "validity_b")):
        return "string"
    return "Int64" if column in COUNTS else "boolean" if column in FLAGS else "Float64"


def _row(cell: CellSummary | None, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The columns in order; of no cell, without values."""
    row, accuracy = (cell.row, cell.accuracy) if cell else (None, None)
    identity = ("run", "model", "backend", "label", "status", "error", "peak_memory_bytes")
    speeds = [cell.at(size) if cell else Speed(batch_size=size) for size in sizes]
    sustained, text, load = (cell.sustained, cell.text, cell.load) if cell else (None, None, None)
    best = load.best if load else None
    found = accuracy.difference if accuracy else None
    flips = found.flips if found else None
    low, high = found.interval if found else (None, None)
    return {
        **{name: getattr(row, name, None) for name in identity},
        **{f"decode_tokens_per_s_b{one.batch_size}": one.tokens_per_s for one in speeds},
        **{f"joules_per_token_b{one.batch_size}": one.joules_per_token for one in speeds},
        **{f"status_b{one.batch_size}": one.status for one in speeds},
        **{f"validity_b{one.batch_size}": one.validity for one in speeds},
        **{name: value for one in speeds for name, value in _speedup(one).items()},
        "sustained_tokens_per_s": getattr(sustained, "steady", None),
        "sustained_peak_tokens_per_s": getattr(sustained, "peak", None),
        "sustained_validity": getattr(sustained, "validity", None),
        "load_output_tokens_per_s": getattr(load.most_tokens if load else None, "output_tokens_per_s", None),
        "goodput_per_s": getattr(best, "goodput_per_s", None),
        "goodput_level": getattr(best, "level", None),
        "slo_rate_per_s": getattr(load.found if load else None, "kept", None),
        "load_validity": getattr(load, "validity", None),
        "mmlu": getattr(accuracy, "value", None),
        "mmlu_ci_low": getattr(accuracy, "low", None),
        "mmlu_ci_high": getattr(accuracy, "high", None),
        "mmlu_n": getattr(accuracy, "n", None),
        "mmlu_partial": getattr(accuracy, "partial", None),
        "mmlu_paired_n": getattr(flips, "n", None),
        "mmlu_delta": getattr(flips, "delta", None),
        "mmlu_delta_low": low,
        "mmlu_delta_high": high,
        "mmlu_p_value": getattr(found, "p_value", None),
        "mmlu_p_holm": getattr(found, "p_holm", None),
        "mmlu_right_to_wrong": getattr(flips, "right_to_wrong", None),
        "mmlu_wrong_to_right": getattr(flips, "wrong_to_right", None),
        "mmlu_below_noise_floor": getattr(found, "below_noise_floor", None),
        "mmlu_verdict": getattr(found, "verdict", None),
        "mmlu_margin": getattr(found, "margin", None),
        "mmlu_detectable": getattr(found, "detectable", None),
        "mmlu_design_effect": getattr(flips, "design_effect", None),
        "perplexity": getattr(text, "perplexity", None),
        "kl_mean": getattr(text, "kl_mean", None),
    }


def _speedup(speed: Speed) -> dict[str, float | None]:
    ratio, name = speed.speedup, f"speedup_b{speed.batch_size}"
    ends = {"": "ratio", "_low": "low", "_high": "high"}
    return {f"{name}{suffix}": getattr(ratio, field, None) for suffix, field in ends.items()}
