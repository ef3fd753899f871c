"""Figures of a level of load, from its requests; pure functions of rows, without tables.

A level sends requests that count, and before and after them others that only keep up the load. Its window begins when
the first counted request is sent and ends when the last of them has ended. Speeds are of the work in the window: a
request that is under way at one of its ends counts by the part of its time that lies inside (`shares`). Counting the
requests that end goes wrong where many end at once, as those of a closed loop do: the window begins with one of them.
Latencies are of the counted requests that were answered. Quantiles interpolate linearly between neighbours
(`formulas.quantile`, type 7 of Hyndman and Fan, The American Statistician 50, 1996).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.analysis.formulas import quantile
from qbench.records.rows import CUT, LoadRow, RequestRow

if TYPE_CHECKING:  # configurations take longer to import than a run to read
    from qbench.config import SLO

PERCENTILES = (50, 90, 95, 99)

SLICES = 10
"""Of a window, over which goodput is averaged. Requests that follow each other wait in the same queue, so that they are
not independent; means over stretches of time nearly are (batch means: A. M. Law, Simulation Modeling and Analysis)."""

FEWEST_IN_SLICES = 2 * SLICES
"""Answers with fewer of which slices tell nothing."""

CLIENT_SHARE = 0.1
"""Of a latency: where the client took more than this of it, the latency is not the server's."""

CLIENT = "client_delay"
"""The flag of such a level."""


def ttft_s(request: RequestRow) -> float:
    """From sending until the first piece of text."""
    return request.token_s[0]


def itl_s(request: RequestRow) -> float | None:
    """(last piece − first piece) ÷ (output_tokens − 1): the mean time between tokens; None of a single token."""
    return (
        (request.token_s[-1] - request.token_s[0]) / (request.output_tokens - 1) if request.output_tokens > 1 else None
    )


def e2e_s(request: RequestRow) -> float:
    """From sending until the end of the answer."""
    return request.ended_s - request.sent_s


def keeps(request: RequestRow, slo: SLO) -> bool:
    """Whether a request was answered, and within the objective."""
    return request.error is None and slo.met(ttft_s(request), itl_s(request))


def counted(requests: Iterable[RequestRow]) -> list[RequestRow]:
    """Those that count."""
    return [one for one in requests if one.phase == "counted"]


def window(requests: Sequence[RequestRow]) -> tuple[float, float]:
    """When the first counted request was sent, and when the last of them had ended.

    Raises:
        ValueError: none is counted.
    """
    own = counted(requests)
    if not own:
        raise ValueError("a level without counted requests has no window")
    return min(one.sent_s for one in own), max(one.ended_s for one in own)


def shares(requests: Sequence[RequestRow], *, closed: bool) -> list[tuple[RequestRow, float]]:
    """The part of each request's time that lies in the window, of those that were answered or cut off.

    In a closed loop, one that was cut off is taken to last as long as the counted ones that were answered do on
    average, and to be answered as often as they are. In an open loop, where it may have waited all the time behind
    others, it is left out. Where none was answered, the list is empty.

    Raises:
        ValueError: none is counted.
    """
    begin, end = window(requests)
    own = counted(requests)
    answered = [e2e_s(one) for one in own if one.error is None]
    if not answered:
        return []
    mean_s = float(np.mean(answered))
    found = []
    for one in requests:
        inside = max(0.0, min(one.ended_s, end) - max(one.sent_s, begin))
        if one.error is None:
            found.append((one, inside / (e2e_s(one) or 1.0)))
        elif one.error == CUT and closed:
            found.append((one, min(1.0, inside / mean_s) * len(answered) / len(own)))
    return found


def figures(requests: Sequence[RequestRow], slo: SLO | None = None, *, closed: bool) -> dict[str, Any]:
    """The columns of a `LoadRow` that its requests decide; `closed`: of a loop that keeps so many under way."""
    own = counted(requests)
    answered = [one for one in own if one.error is None]
    failed = Counter(one.error for one in own if one.error is not None)
    found: dict[str, Any] = {
        "requests": len(own),
        "answered": len(answered),
        "errors": "; ".join(f"{kind} {number}" for kind, number in sorted(failed.items())) or None,
        "client_delay_p95_s": quantile([one.client_delay_s for one in own], 0.95) if own else 0.0,
    }
    if own and slo:
        found |= attained(sum(keeps(one, slo) for one in own), len(own))
        found |= {"slo_ttft_s": slo.ttft, "slo_itl_s": slo.itl}
    if answered:
        found |= _speeds(requests, closed) | _latencies(answered)
    if answered and slo:
        found |= goodput(requests, slo, closed=closed).columns
    return found


def _speeds(requests: Sequence[RequestRow], closed: bool) -> dict[str, float]:
    begin, end = window(requests)
    parts = shares(requests, closed=closed)
    waited = sum(max(0.0, min(one.ended_s, end) - max(one.sent_s, begin)) for one in requests)
    return {
        "window_s": end - begin,
        "in_flight_mean": waited / (end - begin),
        "requests_per_s": sum(part for _, part in parts) / (end - begin),
        "output_tokens_per_s": sum(part * _tokens(one) for one, part in parts) / (end - begin),
    }


def _tokens(request: RequestRow) -> int:
    """Of its answer; those asked for of one that was cut off."""
    return request.output_tokens if request.error is None else request.asked_tokens


def _latencies(answered: Sequence[RequestRow]) -> dict[str, float | None]:
    gaps = [gap for one in answered for gap in _gaps(one)]
    samples = {
        "ttft": [ttft_s(one) for one in answered],
        "itl": gaps,
        "e2e": [e2e_s(one) for one in answered],
    }
    found: dict[str, float | None] = {
        f"{name}_p{percent}_s": quantile(values, percent / 100) if values else None
        for name, values in samples.items()
        for percent in PERCENTILES
    }
    low, high = quantile_interval(samples["ttft"], 0.95)
    prompts = [one.prompt_tokens for one in answered if one.prompt_tokens is not None]
    return found | {
        "ttft_p95_low_s": low,
        "ttft_p95_high_s": high,
        "prompt_tokens_mean": float(np.mean(prompts)) if prompts else None,
        "output_tokens_mean": float(np.mean([one.output_tokens for one in answered])),
    }


def quantile_interval(values: Sequence[float], q: float) -> tuple[float | None, float | None]:
    """The 95 % interval of a quantile between two of the sorted values, whatever their distribution.

    By the binomial distribution of how many lie below it (W. J. Conover, Practical Nonparametric Statistics, 3.2). An
    end is None where there are too few values to say.
    """
    from scipy.stats import quantile_test

    ends = quantile_test(values, p=q).confidence_interval(0.95)
    low, high = (float(end) for end in (ends.low, ends.high))
    return (low if math.isfinite(low) else None, high if math.isfinite(high) else None)


def attained(met: int, requests: int) -> dict[str, Any]:
    """The share that kept the objective, with its exact 95 % interval (C. J. Clopper and E. S. Pearson, 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(met, requests).proportion_ci(0.95, method="exact")
    return {
        "met": met,
        "attainment": met / requests,
        "attainment_low": float(interval.low),
        "attainment_high": float(interval.high),
    }


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests a second that were answered within the objective."""

    per_s: float
    slices: tuple[float, ...]
    """Of `SLICES` equal stretches of the window; none where too few requests ended."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """mean ± t · stdev ÷ √slices, 95 %, of the slices; None without them."""
        if not self.slices:
            return None
        from qbench.compat.scipy import stdtrit

        half = float(stdtrit(len(self.slices) - 1, 0.975)) * float(np.std(self.slices, ddof=1))
        half /= math.sqrt(len(self.slices))
        return max(0.0, self.per_s - half), self.per_s + half

    @property
    def columns(self) -> dict[str, float | None]:
        """Of a `LoadRow`."""
        low, high = self.interval or (None, None)
        return {"goodput_per_s": self.per_s, "goodput_low_per_s": low, "goodput_high_per_s": high}


def goodput(requests: Sequence[RequestRow], slo: SLO, *, closed: bool) -> Goodput:
    """The shares of requests that kept the objective ÷ the window's length.

    Of requests that were cut off as many keep it as of those that were answered. Slices are of where requests ended,
    scaled to the same mean.

    Raises:
        ValueError: none is counted.
    """
    begin, end = window(requests)
    answered = [one for one in counted(requests) if one.error is None]
    kept = sum(keeps(one, slo) for one in answered) / max(1, len(answered))
    parts = [(keeps(one, slo) if one.error is None else kept) * part for one, part in shares(requests, closed=closed)]
    per_s = sum(parts) / (end - begin)
    ended = [one for one in requests if one.error is None and begin < one.ended_s <= end]
    slices: tuple[float, ...] = ()
    if len(ended) >= FEWEST_IN_SLICES:
        counts, _ = np.histogram([one.ended_s for one in ended if keeps(one, slo)], bins=SLICES, range=(begin, end))
        slices = tuple(per_s * float(count) / (counts.mean() or 1.0) for count in counts)
    return Goodput(per_s, slices)


def client_flag(requests: Sequence[RequestRow], loop_lag_p95_s: float) -> bool:
    """Whether delays of the client are more than `CLIENT_SHARE` of the latencies that they are part of.

    95th percentiles of its delays against medians: how late requests were sent, against the time to the first token;
    how late the event loop came, against the time between tokens; all of it, against whole answers.
    """
    answered = [one for one in counted(requests) if one.error is None]
    if not answered:
        return False
    gaps = [gap for one in answered for gap in _gaps(one)]
    pairs = [
        ([one.sent_s - one.planned_s for one in answered], [ttft_s(one) for one in answered]),
        ([one.client_delay_s for one in answered], [e2e_s(one) for one in answered]),
        *([([loop_lag_p95_s], gaps)] if gaps else []),
    ]
    return any(quantile(delays, 0.95) > CLIENT_SHARE * quantile(whole, 0.5) for delays, whole in pairs)


def _gaps(request: RequestRow) -> list[float]:
    return [after - before for before, after in pairwise(request.token_s)]


def judge(met: int, requests: int, attainment: float) -> bool | None:
    """Whether so many requests show that a rate keeps an objective, or misses it; None where they show neither.

    They do where the exact interval of the share lies on one side of `attainment`. Requests of one level wait in the
    same queue, so that the interval is somewhat too narrow; a repetition is a new queue.
    """
    found = attained(met, requests)
    if found["attainment_low"] >= attainment:
        return True
    return False if found["attainment_high"] < attainment else None


@dataclass(frozen=True, slots=True)
class FoundRate:
    """What a search has found."""

    kept: float | None
    """The highest rate that kept the objective, requests a second; None if none did."""
    missed: float | None
    """The lowest that missed it; None if none did: what was found is then a lower bound."""
    certain: bool
    """Whether both were shown, see `judge`."""


def found_rate(levels: Iterable[LoadRow], attainment: float) -> FoundRate | None:
    """What the levels of a search say together, repetitions of a rate as one; None without any."""
    tally: dict[float, tuple[int, int]] = {}
    for level in levels:
        if level.mode == "search" and level.rate is not None:
            met, requests = tally.get(level.rate, (0, 0))
            tally[level.rate] = (met + (level.met or 0), requests + level.requests)
    if not tally:
        return None
    shown = {rate: judge(met, n, attainment) for rate, (met, n) in tally.items() if n}
    kept = {
        rate: tally[rate][0] >= attainment * tally[rate][1] if sure is None else sure for rate, sure in shown.items()
    }
    missed = min((rate for rate, one in kept.items() if not one), default=None)
    below = [rate for rate, one in kept.items() if one and (missed is None or rate < missed)]
    best = max(below, default=None)
    return FoundRate(best, missed, all(shown[rate] is not None for rate in (best, missed) if rate is not None))
