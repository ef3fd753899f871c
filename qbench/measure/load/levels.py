"""The levels of a cell's load, one after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from qbench.analysis import load as figures
from qbench.analysis.formulas import quantile
from qbench.config import LoadConfig
from qbench.engine.base import Capability, Engine
from qbench.engine.server.client import Endpoint, complete, open_client
from qbench.machine.conditions import Sampler
from qbench.measure.base import Context, check_length, make_sampler
from qbench.measure.load import requests
from qbench.measure.load.journal import Journal, Whole
from qbench.measure.load.loops import Answer, Bounds, Level, Sent, closed_loop, open_loop, watch_lag
from qbench.measure.load.requests import Request
from qbench.measure.load.search import Search, Tally
from qbench.records.rows import CUT, LoadRow, RequestRow

NEEDS = frozenset({Capability.REQUESTS})
"""Capabilities without which a cell's measure is unsupported."""

OPEN_WARMUP = 0.1
"""Of an open loop's counted requests, that many come before them: by then the first answers have ended, and the queue
is as long as it will be where the server keeps up."""

UNSEEN: Mapping[str, object] = {"cache_prompt": False}
"""Of random prompts: llama.cpp reads all of them, also those of an earlier run."""

ALONE = 5
"""Requests, one after another, by which a search learns at which rate to begin."""

DIGITS = 6
"""Of moments in seconds that are kept."""


class Serving(Engine, Protocol):
    """An engine with `Capability.REQUESTS`."""

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""

    def prompt(self, ids: Sequence[int]) -> requests.Prompt:
        """Token ids as the server takes them: as they are, or a text that has as many."""


@dataclass(frozen=True, slots=True)
class Load:
    """What distinguishes a level."""

    name: str
    mode: Literal["closed", "open", "search"]
    counted: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def words(self) -> str:
        """For who watches."""
        return f"load, {self.concurrency} at a time" if self.concurrency else f"load, {self.rate:g} requests/s"


def measure(engine: Engine, config: LoadConfig, context: Context, sampler: Sampler | None = None) -> None:
    """Emit, for every level, a `LoadRow` and a `RequestRow` for each of its requests.

    Where no request of a level is answered, its row says so, and higher levels of the same kind are not tried.
    `sampler` looks at the machine before and after each level; by default the real one.
    """
    check_length(engine, config.longest, "measure.load: prompt_tokens and output_tokens")
    levels = _Levels(cast(Serving, engine), config, context, sampler or make_sampler(engine))
    levels.take([Load(f"c{n}", "closed", config.requests_per_level, concurrency=n) for n in config.concurrencies])
    levels.take([Load(f"r{rate:g}", "open", config.requests_per_level, rate=rate) for rate in config.rates])
    if config.find_rate and context.wants("search"):
        levels.search()


class _Levels:
    """Takes the levels of one cell."""

    def __init__(self, engine: Serving, config: LoadConfig, context: Context, sampler: Sampler) -> None:
        self._engine, self._config, self._context, self._sampler = engine, config, context, sampler
        self._done, self._total = 0, len(config.units())

    def take(self, loads: list[Load]) -> None:
        """Ascending levels of one kind, those that are kept from before left out."""
        for i, load in enumerate(loads):
            if self._context.wants(load.name):
                with self._journal(load.name) as journal:
                    whole = self._level(load, journal)
                self._context.emit(whole.level, *whole.requests, unit=load.name)
                if whole.level.status != "ok":
                    for higher in loads[i + 1 :]:
                        reason = f"not tried, since no request of {load.name} was answered"
                        self._context.emit(self._row(higher, {}, reason), unit=higher.name)
                    return
            self._done += 1

    def search(self) -> None:
        """Levels of open loops until the highest rate that keeps the objective is found."""
        config, taken = self._config, list[Whole]()
        with self._journal("search") as journal:

            def take(concurrency: int | None, rate: float | None) -> LoadRow:
                name = f"search/{len(taken)}"
                load = Load(name, "search", config.requests_per_level if rate else ALONE, concurrency, rate)
                whole = journal.levels.get(name)
                if whole is None or whole.level.rate != rate:
                    whole = self._level(load, journal)
                    journal.put(whole.level)
                taken.append(whole)
                return whole.level

            def tally(rate: float) -> Tally:
                level = take(None, rate)
                return level.met or 0, level.requests

            alone = take(1, None)
            # What one request at a time does not keep, no rate does.
            if alone.met and alone.requests_per_s:
                searching = Search(
                    tally, config.attainment, repetitions=config.repetitions, most_levels=config.search_levels
                )
                searching.run(alone.requests_per_s)
        self._context.emit(*(row for whole in taken for row in (whole.level, *whole.requests)), unit="search")

    @contextlib.contextmanager
    def _journal(self, unit: str) -> Iterator[Journal]:
        own = f".{unit}-{requests.identify(self._config)}.jsonl"
        journal = Journal(self._context.journal and self._context.journal.with_suffix(own))
        try:
            yield journal
        finally:
            journal.close()

    def _level(self, load: Load, journal: Journal) -> Whole:
        self._context.progress(load.words, self._done, self._total)
        rows: list[RequestRow] = []

        def keep(sent: Sent) -> None:
            row = self._request_row(load, sent)
            rows.append(row)
            journal.put(row)

        bounds = self._bounds(load)
        asked = requests.make(
            self._config,
            load.name,
            bounds.total,
            self._context.seed,
            self._engine.about.vocab_size,
            self._engine.prompt,
        )
        before = self._sampler.sample()
        lag_p95_s = asyncio.run(self._send(load, asked, bounds, keep))
        conditions = self._sampler.since(before)
        found = figures.figures(rows, self._config.slo, closed=load.concurrency is not None)
        flags = {conditions.validity} - {"ok"}
        if figures.client_flag(rows, lag_p95_s):
            flags.add(figures.CLIENT)
        found |= {
            "loop_lag_p95_s": lag_p95_s,
            "validity": "+".join(sorted(flags)) or "ok",
            "foreign_cpu": conditions.foreign_cpu,
            "steal": conditions.steal,
        }
        # A search tries rates that are too high on purpose; one request alone is not.
        failed = not found["answered"] and (load.mode != "search" or load.concurrency is not None)
        reason = f"no request was answered ({found['errors'] or 'none was sent'})" if failed else None
        return Whole(self._row(load, found, reason), rows)

    def _bounds(self, load: Load) -> Bounds:
        """A closed loop is warm when each of its places has had a request, and full while each has one more."""
        if load.concurrency:
            return Bounds(load.concurrency, load.counted, load.concurrency, self._config.duration_s)
        warmup = max(1, round(OPEN_WARMUP * load.counted))
        return Bounds(warmup, load.counted, load.counted, self._config.duration_s)

    async def _send(self, load: Load, asked: list[Request], bounds: Bounds, keep: Callable[[Sent], None]) -> float:
        """Run a level; the 95th percentile of the event loop's lag, in seconds."""
        endpoint = self._engine.endpoint
        lags: list[float] = []
        timeout_s, extra = self._config.timeout_s, {} if self._config.requests else UNSEEN
        async with open_client(endpoint) as client:

            async def send(request: Request) -> Answer:
                return await complete(
                    client, endpoint, request.prompt, request.output_tokens, timeout_s=timeout_s, extra=extra
                )

            watching = asyncio.create_task(watch_lag(lags))
            level = Level(asked, bounds, send, keep)
            if load.concurrency:
                await closed_loop(level, load.concurrency)
            else:
                await open_loop(level, requests.arrivals(load.rate or 1.0, self._context.seed, load.name))
            watching.cancel()
        return quantile(lags, 0.95) if lags else 0.0

    def _request_row(self, load: Load, sent: Sent) -> RequestRow:
        answer = sent.answer
        return RequestRow(
            **self._context.identity,
            level=load.name,
            number=sent.number,
            phase=sent.phase,
            planned_s=round(sent.planned_s, DIGITS),
            sent_s=round(sent.sent_s, DIGITS),
            ended_s=round(sent.ended_s, DIGITS),
            client_delay_s=round(sent.sent_s - sent.planned_s + (answer.client_delay_s if answer else 0.0), DIGITS),
            asked_tokens=sent.request.output_tokens,
            prompt_tokens=answer.prompt_tokens if answer else None,
            output_tokens=answer.tokens if answer else 0,
            error=answer.error if answer else CUT,
            detail=(answer.detail or None) if answer else None,
            token_s=tuple(round(moment - answer.sent_s, DIGITS) for moment in answer.token_s) if answer else (),
        )

    def _row(self, load: Load, found: dict[str, Any], failure: str | None) -> LoadRow:
        nothing = {"requests": 0, "answered": 0, "client_delay_p95_s": 0.0, "loop_lag_p95_s": 0.0}
        return LoadRow.model_validate(
            {
                **self._context.identity,
                "level": load.name,
                "mode": load.mode,
                "concurrency": load.concurrency,
                "rate": load.rate,
                "status": "error" if failure else "ok",
                "error": failure,
                **nothing,
                **found,
            }
        )
