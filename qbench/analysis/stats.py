"""A row of figures for each cell of a run, from its tables; the formulas are in `qbench.analysis.formulas`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qbench.analysis import validity as trust
from qbench.analysis.compare import Comparison, compare, reference_label
from qbench.analysis.formulas import speedup, steady_state, wilson_interval
from qbench.analysis.paired import delta_interval
from qbench.records.answers import mmlu_rows
from qbench.records.run import Run, read_run, write_frame
from qbench.show.phrases import verdict

CHANCE_LEVEL = 0.25
"""Accuracy of guessing among four choices."""

CELL_DTYPES = {
    "run": "string",
    "model": "string",
    "backend": "string",
    "label": "string",
    "status": "string",
    "error": "string",
    "peak_memory_bytes": "Int64",
}
MMLU_DTYPES = {
    "mmlu": "Float64",
    "mmlu_ci_low": "Float64",
    "mmlu_ci_high": "Float64",
    "mmlu_n": "Int64",
    "mmlu_partial": "boolean",
}
PAIRED_DTYPES = {
    "mmlu_paired_n": "Int64",
    "mmlu_delta": "Float64",
    "mmlu_delta_low": "Float64",
    "mmlu_delta_high": "Float64",
    "mmlu_p_value": "Float64",
    "mmlu_p_holm": "Float64",
    "mmlu_right_to_wrong": "Int64",
    "mmlu_wrong_to_right": "Int64",
    "mmlu_below_noise_floor": "boolean",
}
PERPLEXITY_DTYPES = {"perplexity": "Float64", "kl_mean": "Float64"}
SUSTAINED_DTYPES = {
    "sustained_tokens_per_s": "Float64",
    "sustained_peak_tokens_per_s": "Float64",
    "sustained_validity": "string",
}


def batch_sizes(run: Run) -> list[int]:
    """The batch sizes that the run's configuration asked for or that its rows have, ascending."""
    asked = ((run.record.config.get("measure") or {}).get("throughput") or {}).get("batch_sizes") or ()
    return sorted({int(size) for size in (*asked, *run.throughput["batch_size"])})


def decode_trials(run: Run, label: str, batch_size: int) -> list[float]:
    """Decode tokens/s of every ok trial of a cell at a batch size."""
    rows = _trials(run, label, batch_size)
    return [float(value) for value in rows.loc[rows["status"] == "ok", "decode_tokens_per_s"].dropna()]


def write_summary(folder: Path) -> None:
    """Derive a run's summary.csv from its tables; limited evaluations stay out of it."""
    write_frame(folder / "summary.csv", summarize(read_run(folder)))


def summarize(run: Run, *, allow_partial: bool = False) -> pd.DataFrame:
    """One row a cell, in the order of `cells.csv`; of cells that are there twice, the last.

    For each batch size n, `decode_tokens_per_s_b<n>` is the median over the ok trials, `status_b<n>` is ok or what went
    wrong in some trial, and `validity_b<n>` is ok or why the figure is not to be trusted, see
    `qbench.analysis.validity`. `sustained_tokens_per_s` and its peak are those of `steady_state`. `mmlu` is
    sum(correct) ÷ sum(n) over all questions of the cell, a fraction, with its 95 % Wilson interval. What was not
    measured is NA, never 0, and so is an accuracy over part of the questions, or a perplexity or divergence over part
    of the text, unless `allow_partial`.

    The others are compared with the first cell of 16 bits: `speedup_b<n>` with its 95 % interval (see `speedup`), and
    `mmlu_delta`, a fraction, over the `mmlu_paired_n` questions that both answered, with its interval, McNemar's
    p-value and that value after Holm's correction over all cells compared (see `qbench.analysis.paired`). `verdict`
    says it in words.
    """
    sizes = batch_sizes(run)
    cells = run.cells.drop_duplicates("label", keep="last").to_dict("records")
    rows = [
        {**{key: cell[key] for key in CELL_DTYPES}, **_decode(run, cell["label"], sizes)}
        | _mmlu(run, cell["label"], allow_partial)
        | _perplexity(run, cell["label"], allow_partial)
        | _sustained(run, cell["label"])
        for cell in cells
    ]
    _add_comparisons(run, rows, sizes)
    decode_dtypes = {
        **{f"decode_tokens_per_s_b{size}": "Float64" for size in sizes},
        **{f"{column}_b{size}": "string" for column in ("status", "validity") for size in sizes},
        **{column: "Float64" for size in sizes for column in _speedup_columns(size)},
    }
    dtypes = CELL_DTYPES | decode_dtypes | SUSTAINED_DTYPES | MMLU_DTYPES | PAIRED_DTYPES | PERPLEXITY_DTYPES
    dtypes |= {"verdict": "string"}
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)


def _trials(run: Run, label: str, batch_size: int) -> pd.DataFrame:
    rows = run.throughput
    return rows[(rows["label"] == label) & (rows["batch_size"] == batch_size)]


def _decode(run: Run, label: str, sizes: Sequence[int]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for size in sizes:
        speeds = decode_trials(run, label, size)
        statuses = [str(status) for status in _trials(run, label, size)["status"]]
        failed = [status for status in statuses if status != "ok"]
        columns[f"decode_tokens_per_s_b{size}"] = statistics.median(speeds) if speeds else pd.NA
        columns[f"status_b{size}"] = failed[-1] if failed else "ok" if statuses else pd.NA
        columns[f"validity_b{size}"] = trust.validity(_trials(run, label, size)) or pd.NA
    return columns


def _mmlu(run: Run, label: str, allow_partial: bool) -> dict[str, Any]:
    rows = mmlu_rows(run.accuracy, label)
    n, correct, partial = int(rows["n"].sum()), int(rows["correct"].sum()), bool(rows["partial"].any())
    if n == 0 or (partial and not allow_partial):
        return dict.fromkeys(MMLU_DTYPES, pd.NA)
    low, high = wilson_interval(correct, n)
    return {"mmlu": correct / n, "mmlu_ci_low": low, "mmlu_ci_high": high, "mmlu_n": n, "mmlu_partial": partial}


def _perplexity(run: Run, label: str, allow_partial: bool) -> dict[str, Any]:
    rows = run.perplexity[run.perplexity["label"] == label].to_dict("records")
    if not rows or (rows[-1]["partial"] and not allow_partial):
        return dict.fromkeys(PERPLEXITY_DTYPES, pd.NA)
    return {column: rows[-1][column] for column in PERPLEXITY_DTYPES}


def _sustained(run: Run, label: str) -> dict[str, Any]:
    windows = run.sustained[run.sustained["label"] == label]
    if windows.empty:
        return dict.fromkeys(SUSTAINED_DTYPES, pd.NA)
    steady, peak = steady_state([float(speed) for speed in windows["tokens_per_s"]])
    validity = trust.sustained_validity(windows) or pd.NA
    return dict(zip(SUSTAINED_DTYPES, (steady, peak, validity), strict=True))


def _add_comparisons(run: Run, rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> None:
    """Add to the rows of the summary how each compares with the reference."""
    reference = reference_label(run)
    answered = [row["label"] for row in rows if not pd.isna(row["mmlu"])]
    pairs = (
        [(reference, label) for label in answered if label != reference] if reference and reference in answered else []
    )
    compared = {label: comparison for (_, label), comparison in compare(run, pairs).items()}
    for row in rows:
        row |= _paired(compared.get(row["label"]))
        for size in sizes:
            row |= _speedup(run, row["label"], reference, size)
        row["verdict"] = "reference" if row["label"] == reference else verdict(row, sizes) or pd.NA


def _speedup_columns(size: int) -> tuple[str, str, str]:
    return f"speedup_b{size}", f"speedup_b{size}_low", f"speedup_b{size}_high"


def _speedup(run: Run, label: str, reference: str | None, size: int) -> dict[str, Any]:
    columns = _speedup_columns(size)
    speeds = decode_trials(run, label, size)
    others = decode_trials(run, reference, size) if reference and label != reference else []
    return dict(zip(columns, speedup(speeds, others) if speeds and others else 3 * (pd.NA,), strict=True))


def _paired(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return dict.fromkeys(PAIRED_DTYPES, pd.NA)
    flips = comparison.flips
    values = (
        flips.n, flips.delta, *delta_interval(flips), comparison.p_value, comparison.p_holm,
        flips.right_to_wrong, flips.wrong_to_right, comparison.below_noise_floor,
    )  # fmt: skip
    return dict(zip(PAIRED_DTYPES, values, strict=True))
