"""Sending the requests of a level: closed loop and open loop, on one event loop.

A level's requests are numbered as they are sent. The first are a warm-up; then come those that count, as many as were
asked for and for no longer than `duration_s`; after them a tail keeps up the load until the last counted one has ended,
and is cut off. Everything is bounded: a request by its timeout, each phase by a number.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from qbench.measure.load.requests import Request

LAG_STEP_S = 0.02
"""Between looks at how late the event loop is."""


class Answer(Protocol):
    """What is read of a `qbench.engine.server.client.Completion`."""

    sent_s: float
    end_s: float
    token_s: list[float]
    tokens: int
    prompt_tokens: int | None
    error: str | None
    detail: str
    client_delay_s: float


Phase = Literal["warmup", "counted", "tail"]
Send = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests a level has of each phase at most, and for how long counted ones are sent."""

    warmup: int
    counted: int
    tail: int
    duration_s: float

    @property
    def total(self) -> int:
        """All phases."""
        return self.warmup + self.counted + self.tail


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that has ended. Moments are seconds since the level began."""

    number: int
    phase: Phase
    request: Request
    planned_s: float
    sent_s: float
    ended_s: float
    answer: Answer | None
    """None of one that was cut off."""


class Level:
    """The requests of one level, and what is known of them."""

    def __init__(self, requests: Sequence[Request], bounds: Bounds, send: Send, keep: Callable[[Sent], None]) -> None:
        self._requests, self._bounds, self._send, self._keep = requests, bounds, send, keep
        self._began = time.perf_counter()
        self._next = 0
        self._counted_since: float | None = None
        self._counted_sent = self._counted_open = 0
        self._tail_sent = 0
        self.done = asyncio.Event()
        """All counted requests have ended, and no more will be sent."""

    def now(self) -> float:
        """Seconds since the level began."""
        return time.perf_counter() - self._began

    def take(self) -> tuple[int, Phase] | None:
        """The next request's number and phase; None if there is none left to send."""
        phase = self._phase()
        if phase is None:
            return None
        number, self._next = self._next, self._next + 1
        if phase == "counted":
            self._counted_since = self.now() if self._counted_since is None else self._counted_since
            self._counted_sent += 1
            self._counted_open += 1
        elif phase == "tail":
            self._tail_sent += 1
        return number, phase

    def _phase(self) -> Phase | None:
        if self._next < self._bounds.warmup:
            return "warmup"
        if not self._closed:
            return "counted"
        return "tail" if self._counted_open and self._tail_sent < self._bounds.tail else None

    @property
    def _closed(self) -> bool:
        """Whether no more counted requests will be sent."""
        late = self._counted_since is not None and self.now() - self._counted_since >= self._bounds.duration_s
        return late or self._counted_sent == self._bounds.counted

    async def send(self, number: int, phase: Phase, planned_s: float) -> None:
        """Send one and keep what became of it."""
        request, sent_s, answer = self._requests[number], self.now(), None
        ended_s = sent_s
        try:
            answer = await self._send(request)
            sent_s, ended_s = answer.sent_s - self._began, answer.end_s - self._began
        finally:
            ended_s = ended_s if answer else self.now()
            self._keep(Sent(number, phase, request, planned_s, sent_s, ended_s, answer))
            if phase == "counted":
                self._counted_open -= 1
            if self._counted_sent and not self._counted_open and self._closed:
                self.done.set()


async def closed_loop(level: Level, concurrency: int) -> None:
    """So many requests at a time: each is followed by the next the moment it ends."""

    async def slot() -> None:
        while (taken := level.take()) is not None:
            await level.send(*taken, level.now())

    await _until_done(level, [asyncio.create_task(slot()) for _ in range(concurrency)])


async def open_loop(level: Level, arrivals: Iterator[float]) -> None:
    """A request at each moment of `arrivals`, however many are still waiting for their answers."""
    tasks: list[asyncio.Task[None]] = []
    for planned_s in arrivals:
        if delay_s := max(0.0, planned_s - level.now()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(level.done.wait(), delay_s)
        if level.done.is_set() or (taken := level.take()) is None:
            break
        tasks.append(asyncio.create_task(level.send(*taken, planned_s)))
    await _until_done(level, tasks)


async def _until_done(level: Level, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the counted requests, and cut off what is left; an error of ours ends all."""
    done, work = asyncio.create_task(level.done.wait()), asyncio.gather(*tasks)
    try:
        either: set[asyncio.Future[Any]] = {done, work}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        done.cancel()
        work.cancel()
        await asyncio.gather(done, work, *tasks, return_exceptions=True)


async def watch_lag(lags: list[float]) -> None:
    """Note, again and again, by how many seconds the event loop comes late; never ends by itself."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_STEP_S)
        lags.append(time.perf_counter() - before - LAG_STEP_S)
