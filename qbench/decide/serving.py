"""Goodput of the cells of a run, under whatever objective is asked for: from every request that was sent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.analysis.effects import section
from qbench.analysis.figures import RunSummary
from qbench.analysis.load import Goodput, counted, goodput, keeps
from qbench.errors import QbenchError
from qbench.records import requests
from qbench.records.rows import LoadRow, RequestRow

if TYPE_CHECKING:  # configurations take longer to import than a run to read
    from qbench.config import SLO

MARGIN = 0.1
"""Goodputs of which nothing is known but themselves differ from here on, as speeds of single trials do."""


@dataclass(frozen=True, slots=True)
class Served:
    """The level of a cell with the highest goodput."""

    level: LoadRow
    goodput: Goodput
    met: int
    requests: int
    """That count; `met` of them kept the objective."""


def objective(run: RunSummary, given: SLO | None) -> SLO:
    """What was asked for, or else what the run's configuration says.

    Raises:
        QbenchError: neither says anything.
    """
    own = section(run.run, "load").get("slo")
    if given is None and own is None:
        raise QbenchError(
            f"--objective goodput: {run.run.record.name} names no objective; add --slo, e.g. --slo ttft=0.5s,itl=50ms"
        )
    from qbench.config import SLO

    return given or SLO.model_validate(own)


def served(run: RunSummary, slo: SLO) -> Mapping[str, Served]:
    """By label, the best level of every cell that has answered requests; levels of the search are among them."""
    levels = {(row.label, row.level): row for row in run.run.load}
    sent: defaultdict[tuple[str, str], list[RequestRow]] = defaultdict(list)
    for request in requests.read(run.run.folder):
        sent[request.label, request.level].append(request)
    found: dict[str, Served] = {}
    for (label, name), rows in sent.items():
        own = counted(rows)
        if (label, name) not in levels or not any(one.error is None for one in own):
            continue
        level = levels[label, name]
        one = Served(
            level, goodput(rows, slo, closed=level.rate is None), sum(keeps(request, slo) for request in own), len(own)
        )
        if label not in found or one.goodput.per_s > found[label].goodput.per_s:
            found[label] = one
    return found


def difference(first: Goodput, second: Goodput) -> tuple[float, float, float]:
    """The second's goodput less the first's, requests/s, and its 95 % interval.

    The interval is Welch's, of the slices' means; where one has none, `MARGIN` of the larger to either side.
    """
    delta = second.per_s - first.per_s
    if not (first.slices and second.slices):
        half = MARGIN * max(first.per_s, second.per_s)
        return delta, delta - half, delta + half
    from scipy.stats import ttest_ind

    interval = ttest_ind(second.slices, first.slices, equal_var=False).confidence_interval(0.95)
    low, high = float(interval.low), float(interval.high)
    # Slices without any variance have no interval, and need none.
    return (delta, low, high) if math.isfinite(low) and math.isfinite(high) else (delta, delta, delta)


def requests_needed(best: Served, named: Served, margin: float) -> int | None:
    """About how many requests a level would show that `named` has no less than (1 − margin) of the best's goodput.

    The interval's half width falls with the root of their number; None if no number would show it.
    """
    delta, low, _ = difference(best.goodput, named.goodput)
    room = margin * best.goodput.per_s + delta
    return math.ceil(named.requests * ((delta - low) / room) ** 2) if room > 0 else None
