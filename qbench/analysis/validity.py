"""Which speeds are not to be trusted, and why: what their trials ran under, and how far apart they are.

The worker says of each trial what it ran under (`qbench.machine.conditions`). That trials are too far apart is a
property of all of them and is derived here, from their rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from qbench.records.rows import ThroughputRow
from qbench.records.trials import by_start

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


def validity(trials: Iterable[ThroughputRow]) -> str | None:
    """`ok`, or the reasons over all ok trials of a cell at a batch size, joined by `+`.

    Trials are unstable within a start: how far apart starts are is in the interval, which counts them.

    None where there is no trial, or where nothing speaks against them but not all say what they ran under, as in tables
    of older versions.
    """
    ok = [trial for trial in trials if trial.status == "ok"]
    speeds = by_start((trial, trial.decode_tokens_per_s) for trial in ok)
    unstable = any(spread(one) > SPREAD_BOUND for one in speeds)
    return joined((trial.validity for trial in ok), {"unstable"} if unstable else ())


def joined(told: Iterable[str | None], derived: Iterable[str] = ()) -> str | None:
    """`ok`, or every reason in what several figures say and in `derived`, joined by `+`.

    None where there is no reason and not all figures say anything.
    """
    texts = list(told)
    if found := {reason for text in texts for reason in reasons(text)} | set(derived):
        return "+".join(sorted(found))
    return "ok" if texts and None not in texts else None


def reasons(validity: str | None) -> tuple[str, ...]:
    """The reasons in what `validity` gives; none if it is ok or not known."""
    return tuple(reason for reason in (validity or "ok").split("+") if reason != "ok")
