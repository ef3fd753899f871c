"""Two answers to one prompt, at once: what arrives is kept as it arrives, and handed on in a form for the page.

In a blind turn the pace would tell which backend is which. So the nth piece of both answers is handed on when both have
it, an answer that goes on alone keeps the pace that the two had, and no figure of either leaves the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from qbench.serve.answers import Piece
from qbench.serve.store import SIDES, Answer, Side, State, Store

WRITE_EVERY_S = 0.25
"""What a kill may take of an answer."""


Source = Callable[[], AsyncGenerator[Piece, None]]
"""Asks a backend. What it raises is the answer's error, in one sentence."""


@dataclass(slots=True)
class _Half:
    """One of the two: `answer` is what was handed on, the rest what has arrived."""

    answer: Answer
    pieces: list[Piece] = field(default_factory=list)
    handed_on: int = 0
    ended: State | None = None
    """Known to the page when all pieces have been handed on, as `answer.state`."""
    error: str | None = None

    @property
    def told(self) -> bool:
        return self.answer.state is not State.STREAMING

    def take(self, until: int) -> str:
        """Hand on pieces before the given one."""
        taken = self.pieces[self.handed_on : until]
        self.handed_on = until
        self.answer.text += (text := "".join(piece.text for piece in taken))
        self.answer.tokens += sum(piece.generated for piece in taken)
        return text

    def end(self) -> bool:
        """Hand on that it has ended; whether that is news."""
        if self.told or self.ended is None or self.handed_on < len(self.pieces):
            return False
        self.answer.state, self.answer.error = self.ended, self.error
        return True


class Pair:
    """A turn while it is answered."""

    def __init__(
        self, store: Store, turn: str, answers: Mapping[Side, Answer], sources: Mapping[Side, Source], *, blind: bool
    ) -> None:
        self.turn = turn
        self._store, self._sources, self._blind = store, sources, blind
        self._halves = {side: _Half(answers[side]) for side in SIDES}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pace_s = 0.0
        """A piece, while both answers grew."""

    def stop(self) -> None:
        """End what still runs; `events` says so and ends, too."""
        for task in self._tasks:
            task.cancel()
        for half in self._halves.values():
            if self._blind and not half.told:
                # How much more of one had arrived would tell them apart.
                del half.pieces[half.handed_on :]
                half.ended = State.STOPPED
            half.ended = half.ended or State.STOPPED
        self._changed.set()

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """`{"type": "text", "side": "a", "text": …}` as answers grow, and `{"type": "end", …}` for each of them.

        Whoever ends the iteration early ends the answers; they are kept as stopped.
        """
        written = time.perf_counter()
        self._tasks = [asyncio.create_task(self._answer(side)) for side in SIDES]
        try:
            async for event in self._in_step() if self._blind else self._at_once():
                yield event
                if time.perf_counter() - written > WRITE_EVERY_S:
                    self._write()
                    written = time.perf_counter()
        finally:
            self.stop()
            for half in self._halves.values():
                half.take(len(half.pieces))
                half.end()
            self._write()

    async def _answer(self, side: Side) -> None:
        half = self._halves[side]
        asked, first, arrived = time.perf_counter(), 0.0, 0
        try:
            async with aclosing(self._sources[side]()) as pieces:
                async for piece in pieces:
                    now = time.perf_counter()
                    if not arrived:
                        first, half.answer.ttft_s = now, now - asked
                    arrived += piece.generated
                    if arrived > 1 and now > first:
                        half.answer.decode_tokens_per_s = (arrived - 1) / (now - first)
                    half.pieces.append(piece)
                    self._changed.set()
            half.ended = half.ended or State.DONE
        except Exception as error:  # whatever a backend does, the other goes on
            half.ended, half.error = half.ended or State.FAILED, str(error) or type(error).__name__
        finally:
            self._changed.set()

    async def _at_once(self) -> AsyncIterator[dict[str, Any]]:
        while not all(half.told for half in self._halves.values()):
            await self._changed.wait()
            self._changed.clear()
            for side, half in self._halves.items():
                if text := half.take(len(half.pieces)):
                    yield {"type": "text", "side": side, "text": text, **figures(half.answer)}
                if half.end():
                    yield {"type": "end", "side": side, "state": half.answer.state, **figures(half.answer)}

    async def _in_step(self) -> AsyncIterator[dict[str, Any]]:
        started = time.perf_counter()
        while not all(half.told for half in self._halves.values()):
            for side, half in self._halves.items():
                if half.end():
                    yield {"type": "end", "side": side, "state": half.answer.state}
            sides = self._next()
            if not sides:
                if not all(half.told for half in self._halves.values()):
                    await self._changed.wait()
                    self._changed.clear()
                continue
            if len(sides) == 1:
                await asyncio.sleep(self._pace_s)
            else:
                self._pace_s = (time.perf_counter() - started) / (self._halves["a"].handed_on + 1)
            for side in self._next():  # a stop takes what was waiting
                half = self._halves[side]
                yield {"type": "text", "side": side, "text": half.take(half.handed_on + 1)}

    def _next(self) -> list[Side]:
        """The sides whose next piece may be handed on: both, or one where the other has ended."""
        waiting = [side for side in SIDES if len(self._halves[side].pieces) > self._halves[side].handed_on]
        return waiting if all(side in waiting or self._halves[side].ended for side in SIDES) else []

    def _write(self) -> None:
        self._store.write(self.turn, {side: half.answer for side, half in self._halves.items()})


def figures(answer: Answer) -> dict[str, Any]:
    """What is measured of an answer, and its error."""
    return {
        "tokens": answer.tokens,
        "ttft_s": answer.ttft_s,
        "decode_tokens_per_s": answer.decode_tokens_per_s,
        "weight_bytes": answer.weight_bytes,
        "error": answer.error,
    }
