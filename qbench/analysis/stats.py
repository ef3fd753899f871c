"""Figures from raw samples and rows. Pure functions; each figure's formula stands in its docstring."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qbench.analysis import validity as trust
from qbench.analysis.compare import Comparison, compare, reference_label
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


def prefill_tokens_per_s(batch_size: int, prompt_tokens: int, ttft_s: float) -> float:
    """batch_size × prompt_tokens ÷ ttft_s.

    Raises:
        ValueError: `ttft_s` is not positive.
    """
    if not ttft_s > 0:
        raise ValueError(f"the time to the first token must be positive, not {ttft_s} s")
    return batch_size * prompt_tokens / ttft_s


def decode_tokens_per_s(batch_size: int, step_s: Sequence[float]) -> float:
    """batch_size × len(step_s) ÷ sum(step_s), where `step_s` holds the steps after the first token.

    Raises:
        ValueError: there is no step, or the steps took no time.
    """
    total_s = sum(step_s)
    if not total_s > 0:
        raise ValueError(f"{len(step_s)} decode steps in {total_s} s give no speed")
    return batch_size * len(step_s) / total_s


def quantile(values: Sequence[float], q: float) -> float:
    """The value at position q × (len(values) − 1) of the sorted values, interpolated linearly between neighbours.

    Raises:
        ValueError: there is no value, or `q` is outside 0..1.
    """
    if not len(values):
        raise ValueError("a quantile needs at least one value")
    return float(np.quantile(values, q))


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the true accuracy by Wilson's score: (c ± h) ÷ (1 + z²/n).

    c = p + z²/2n, h = z √(p(1 − p)/n + z²/4n²), with p = correct ÷ n and z the normal quantile at (1 + confidence) ÷ 2.

    Raises:
        ValueError: `n` is not positive, or `correct` is outside 0..n.
    """
    if n <= 0:
        raise ValueError("an accuracy over no question has no interval")
    # Costs a second to import, which `qbench --help` must not pay.
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def speedup(
    speeds: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """exp(mean log speed − mean log reference), the ratio of the geometric means over trials, and its interval.

    The interval is Welch's for two means of unequal variance, on logarithms: d ± t √(s²/n + s_r²/n_r), t of
    Welch and Satterthwaite's degrees of freedom. Few trials make it wide, and a single one in either place gives none.
    It tells how trials vary within a process, not what another start of the machine would give.

    Raises:
        ValueError: there is no trial, or a speed is not positive.
    """
    if not (speeds and reference and min(*speeds, *reference) > 0):
        raise ValueError("a speed-up needs trials of both cells with positive speeds")
    logs, reference_logs = ([math.log(speed) for speed in trials] for trials in (speeds, reference))
    ratio = math.exp(statistics.fmean(logs) - statistics.fmean(reference_logs))
    if min(len(logs), len(reference_logs)) < 2:
        return ratio, None, None
    if statistics.pvariance(logs) == statistics.pvariance(reference_logs) == 0:
        return ratio, ratio, ratio
    # Costs a second to import.
    from scipy.stats import ttest_ind

    interval = ttest_ind(logs, reference_logs, equal_var=False).confidence_interval(confidence)
    return ratio, math.exp(interval.low), math.exp(interval.high)


def mean_of_windows(values: np.ndarray[Any, Any]) -> tuple[float, float | None]:
    """Mean of `values` [windows, tokens], and its standard error: stdev of the windows' means ÷ √windows.

    Windows, not tokens, are what is counted: tokens of a window share its text, and treating them as independent would
    make the error far too small. One window gives none.
    """
    means = values.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None


def steady_state(windows: Sequence[float]) -> tuple[float, float]:
    """Speed that lasts, and the peak before: median of the last third of the windows, and maximum of the first.

    A third is ⌈len(windows) ÷ 3⌉ windows.

    Raises:
        ValueError: there is no window.
    """
    if not windows:
        raise ValueError("a steady state needs at least one window")
    third = -(-len(windows) // 3)
    return statistics.median(windows[-third:]), max(windows[:third])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other point dominates, cheapest first.

    A point dominates another if its cost is not higher, its gain not lower, and one of the two is better. Points that
    are equal do not dominate each other: all of them are on the front, or none.
    """
    by_cost = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in by_cost:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


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
