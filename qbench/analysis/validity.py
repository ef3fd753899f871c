"""Which speeds are marked, and why: what their trials ran under, and how far apart they are.

The worker says of each trial what it ran under (`qbench.machine.conditions`). That trials are too far apart is a
property of all of them and is derived here, from their rows.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qbench.records.run import display_label

SPREAD_BOUND = 0.1
"""(max − min) ÷ median of the trials' decode speeds. Backends that are worth comparing often differ by no more than
this tenth; on a machine without other work three trials mostly lie within half of it."""

REASONS = {
    "foreign_load": "other processes used the machine; end them and measure again, or set max_retries_invalid",
    "throttled": "clocks fell or the hypervisor took time away; cool the machine, or set cooldown_s, and measure again",
    "unstable": f"the trials are more than {SPREAD_BOUND:.0%} apart; measure again with more trials or new_tokens",
}
"""What a mark can mean, and what to do about it."""

Record = Mapping[str, Any]
"""A row of the summary."""


def spread(speeds: Sequence[float]) -> float:
    """(max − min) ÷ median.

    Raises:
        ValueError: there is no speed.
    """
    if not speeds:
        raise ValueError("a spread needs at least one speed")
    return (max(speeds) - min(speeds)) / statistics.median(speeds)


def validity(trials: pd.DataFrame) -> str | None:
    """`ok`, or the reasons over all ok trials of a cell at a batch size, joined by `+`.

    None where there is no trial, or where nothing speaks against them but not all say what they ran under, as in tables
    of older versions.
    """
    trials = trials[trials["status"] == "ok"]
    speeds = [float(speed) for speed in trials["decode_tokens_per_s"].dropna()]
    unstable = bool(speeds) and spread(speeds) > SPREAD_BOUND
    return _summary(trials["validity"], {"unstable"} if unstable else set())


def sustained_validity(windows: pd.DataFrame) -> str | None:
    """`ok`, or the reasons over all windows of a cell under sustained load, joined by `+`; None as in `validity`.

    Windows may be as far apart as they like: that is what such a load is measured for.
    """
    return _summary(windows["validity"], set())


def _summary(told: pd.Series[str], derived: set[str]) -> str | None:
    found = {reason for text in told.dropna() for reason in text.split("+")} - {"ok"} | derived
    if found:
        return "+".join(sorted(found))
    return "ok" if len(told) and told.notna().all() else None


def mark(cell: Record, batch_size: int) -> str:
    """What stands after a speed that is not to be trusted; empty after others."""
    return " !" if _reasons(cell, batch_size) else ""


def sustained_mark(cell: Record) -> str:
    """As `mark`, of the speed under sustained load, where falling clocks are a finding and other processes are not."""
    return " !" if "foreign_load" in _words(cell["sustained_validity"]) else ""


def remarks(cells: Sequence[Record], batch_sizes: Sequence[int]) -> list[str]:
    """A line for each reason there is: where, what was wrong, what to do."""
    places = _places(cells, batch_sizes)
    for cell in cells:
        if sustained_mark(cell):
            places["foreign_load"].append(f"{_name(cell)} under sustained load")
    return [
        f"! {reason} ({', '.join(places[reason])}): {REASONS.get(reason, 'see throughput.csv')}"
        for reason in sorted(places)
    ]


def caption(cells: Sequence[Record], batch_sizes: Sequence[int]) -> str:
    """All marks of trials in one line; empty if there is none."""
    places = _places(cells, batch_sizes)
    found = "; ".join(f"{reason.replace('_', ' ')} ({', '.join(places[reason])})" for reason in sorted(places))
    return f"!: not to be trusted: {found}" if found else ""


def _reasons(cell: Record, batch_size: int) -> list[str]:
    return _words(cell[f"validity_b{batch_size}"])


def _words(value: Any) -> list[str]:
    return [] if pd.isna(value) or value == "ok" else str(value).split("+")


def _places(cells: Sequence[Record], batch_sizes: Sequence[int]) -> defaultdict[str, list[str]]:
    """By reason, the figures that have it: `INT4 at batch 1 and 8`, `NF4 at batch 1`."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for cell in cells:
        sizes: dict[str, list[str]] = defaultdict(list)
        for size in batch_sizes:
            for reason in _reasons(cell, size):
                sizes[reason].append(str(size))
        for reason, found in sizes.items():
            places[reason].append(f"{_name(cell)} at batch {_join(found)}")
    return places


def _name(cell: Record) -> str:
    return display_label(cell["backend"], cell["label"])


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
