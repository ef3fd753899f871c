"""A row of the summary in words: how a cell compares with the 16-bit reference, and whether that means anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qbench.analysis.compare import SIGNIFICANCE


def verdict(row: Mapping[str, Any], batch_sizes: Sequence[int]) -> str:
    """Speed-ups and accuracy against the reference in one line, empty if there is neither."""
    speeds = [(speedup_words(row, size), size) for size in batch_sizes]
    parts = [f"{words} at batch {size}" for words, size in speeds if words]
    accuracy = accuracy_words(row)
    return "; ".join([*parts, f"accuracy {accuracy}"] if accuracy else parts)


def accuracy_words(row: Mapping[str, Any]) -> str:
    """`−0.6 points [−1.1, −0.1], p = 0.02`, `within noise, p = 0.3` or `below the noise floor`; empty if there is none.

    Points are percent of the questions, the interval is the bootstrap's 95 %, p is McNemar's after Holm's correction.
    """
    if pd.isna(row["mmlu_delta"]):
        return ""
    return accuracy_difference(row, interval=True) + _restrictions(row)


def accuracy_difference(row: Mapping[str, Any], *, interval: bool) -> str:
    """The words for a difference in accuracy; without its interval also without the p-value of one that is noise."""
    if not pd.isna(row["mmlu_below_noise_floor"]) and row["mmlu_below_noise_floor"]:
        return "below the noise floor"
    if row["mmlu_p_holm"] >= SIGNIFICANCE:
        return "within noise" + (f", {p_words(row['mmlu_p_holm'])}" if interval else "")
    points = [100 * row[key] for key in ("mmlu_delta", "mmlu_delta_low", "mmlu_delta_high")]
    # One decimal says enough unless it says 0.0 of something else.
    decimals = 1 if min(map(abs, points)) >= 0.05 else 2
    delta, low, high = (signed(value, decimals) for value in points)
    return f"{delta} points{f' [{low}, {high}]' if interval else ''}, {p_words(row['mmlu_p_holm'])}"


def speedup_words(row: Mapping[str, Any], batch_size: int) -> str:
    """`2.31× [2.10, 2.54]`, the ratio alone if it has no interval, or empty."""
    ratio, low, high = (row[f"speedup_b{batch_size}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(ratio):
        return ""
    return f"{ratio:.2f}×" if pd.isna(low) else f"{ratio:.2f}× [{low:.2f}, {high:.2f}]"


def sustained_words(row: Mapping[str, Any]) -> str:
    """`101.2 tok/s in the last third, 84 % of the peak of 120.4 in the first`; empty if it was not measured."""
    steady, peak = row["sustained_tokens_per_s"], row["sustained_peak_tokens_per_s"]
    if pd.isna(steady):
        return ""
    return f"{steady:,.1f} tok/s in the last third, {steady / peak:.0%} of the peak of {peak:,.1f} in the first"


def _restrictions(row: Mapping[str, Any]) -> str:
    common = f" on {row['mmlu_paired_n']:,} common questions" if row["mmlu_paired_n"] < row["mmlu_n"] else ""
    return common + (", partial" if row["mmlu_partial"] else "")


def signed(value: float, decimals: int) -> str:
    """With a minus as long as a plus, and no sign before zero."""
    rounded = round(value, decimals)
    sign = "−" if rounded < 0 else "+" if rounded > 0 else ""
    return f"{sign}{abs(rounded):.{decimals}f}"


def p_words(value: float) -> str:
    """`p = 0.02`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.{1 if value < 0.01 else 2}g}"
