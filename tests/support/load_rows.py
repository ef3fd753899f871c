"""Requests and levels of load, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.analysis import load
from qbench.config import SLO
from qbench.records.rows import LoadRow, RequestRow, Row
from tests.support.made_up_run import identity


def request(
    number: int, phase: str, sent_s: float, ended_s: float, *, tokens: int = 0, ttft: float = 0.1, itl: float = 0.01,
    error: str | None = None, level: str = "c4", label: str = "server", **fields: Any,
) -> RequestRow:  # fmt: skip
    """Its pieces come every `itl` seconds from `ttft` on."""
    pieces = () if error else tuple(round(ttft + itl * i, 6) for i in range(tokens))
    moments = {"planned_s": sent_s, "sent_s": sent_s, "ended_s": ended_s, "client_delay_s": 0.0001}
    own = {"number": number, "phase": phase, "level": level, "error": error, "token_s": pieces}
    counts = {"asked_tokens": tokens or 1, "prompt_tokens": 64, "output_tokens": tokens}
    return RequestRow.model_validate({**identity(label, "server"), **moments, **own, **counts, **fields})


def level(requests: Sequence[RequestRow], slo: SLO | None = None, **fields: Any) -> LoadRow:
    """The row of requests that all are of one level."""
    first = requests[0]
    name = first.level
    kind = (
        {"mode": "closed", "concurrency": int(name[1:])}
        if name[0] == "c"
        else {"mode": "open", "rate": float(name[1:])}
    )
    common = {"status": "ok", "level": name, "loop_lag_p95_s": 0.0, "validity": "ok"}
    own = {
        **identity(first.label, "server"),
        **common,
        **kind,
        **load.figures(requests, slo, closed=name[0] == "c"),
        **fields,
    }
    return LoadRow.model_validate(own)


def steady(label: str, name: str, per_s: float, *, ttft: float, itl: float = 0.02, count: int = 60) -> list[RequestRow]:
    """Requests that are sent and end at even distances; one in ten takes half as long again until its first token."""
    return [
        request(
            i, "counted", i / per_s, i / per_s + 1.0, tokens=20, ttft=ttft * (1.5 if i % 10 == 0 else 1), itl=itl,
            level=name, label=label,
        )
        for i in range(count)
    ]  # fmt: skip


def two_servers(slo: SLO | None) -> tuple[list[Row], list[RequestRow]]:
    """`quick` answers sooner at every load than `slow`; both are late at 16 at a time."""
    sent = [
        rows
        for label, factor in (("quick", 1.0), ("slow", 1.8))
        for rows in (
            steady(label, "c1", 2.0 / factor, ttft=0.05 * factor),
            steady(label, "c4", 6.0 / factor, ttft=0.15 * factor),
            steady(label, "c16", 9.0 / factor, ttft=0.6 * factor, itl=0.08),
        )
    ]
    return [level(rows, slo) for rows in sent], [row for rows in sent for row in rows]
