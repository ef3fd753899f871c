"""Which speeds are not to be trusted, and why: what their trials ran under, and how far apart they are.

The worker says of each trial what it ran under (`qbench.machine.conditions`). That trials are too far apart is a
property of all of them and is derived here, from their rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from qbench.records.trials import starts

SPREAD_BOUND = 0.1
"""(max − min) ÷ median of the trials' decode speeds. Backends that are worth comparing often differ by no more than
this tenth; on a machine without other work three trials mostly lie within half of it."""

FOREIGN = "foreign_load"

REASONS = {
    FOREIGN: "other processes used the machine; end them and measure again, or set max_retries_invalid",
    "client_delay": "the client itself took more than a tenth of a latency; run it on another machine than the server",
    "throttled": "clocks fell or the hypervisor took time away; cool the machine, or set cooldown_s, and measure again",
    "unstable": f"the trials are more than {SPREAD_BOUND:.0%} apart; measure again with more trials or new_tokens",
}
"""What each reason means, and what to do about it."""


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

    Trials are unstable within a start: how far apart starts are is in the interval, which counts them.

    None where there is no trial, or where nothing speaks against them but not all say what they ran under, as in tables
    of older versions.
    """
    trials = trials[trials["status"] == "ok"]
    speeds = trials["decode_tokens_per_s"].dropna().astype(float)
    unstable = any(spread(list(one)) > SPREAD_BOUND for _, one in speeds.groupby(starts(trials.loc[speeds.index])))
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


def joined(told: Iterable[str | None]) -> str | None:
    """`ok`, or every reason in what several figures say, joined by `+`; None where none says anything."""
    return _summary(pd.Series(list(told), dtype="string"), set())


def reasons(validity: str | None) -> tuple[str, ...]:
    """The reasons in what `validity` gives; none if it is ok or not known."""
    return () if validity in (None, "ok") else tuple(str(validity).split("+"))
