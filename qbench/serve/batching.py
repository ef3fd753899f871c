"""Continuous batching: one thread in which every served engine computes, step by step.

Requests join a batch when there is room and leave it when they end; between two steps one prompt is read at most, so
that those who wait for tokens do not wait for a queue of prompts. Several engines take turns, a step each: on the same
cores or the same GPU, two that compute at once would take longer than one after the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbench.engine.base import Engine, Floats, Stepper
from qbench.errors import NotFiniteError, QbenchError
from qbench.serve.sampling import Sampler, alternatives, log_probabilities
from qbench.serve.served import Request, Token


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way through a batch."""

    request: Request
    tell: Callable[[Token | Exception], None]
    """Called in the batch's thread with every token, and with what went wrong."""
    sampler: Sampler
    given_up: bool = False
    """Whether whoever asked has gone; set from any thread."""
    made: int = 0
    """Tokens so far."""


class Queue:
    """Requests to one engine, and calls of it. Only `submit` and `call` are for other threads than the engines'."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something to do."""
        self.waiting: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def submit(self, ticket: Ticket) -> None:
        """Let a request wait for its turn."""
        self.waiting.append(ticket)
        self.wake()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Let the engine do something else between two steps."""
        future: Future[Any] = Future()
        self._calls.append((function, future))
        self.wake()
        return future

    def advance(self) -> bool:
        """Do a little of what is to be done; whether there was anything."""
        if self._calls:
            _answer(*self._calls.popleft())
            return True
        return False

    def close(self) -> None:
        """Give memory back."""


class Batch(Queue):
    """Requests that compute together.

    Args:
        stepper: of an engine.
        sequences: requests that compute at once.
        ends: tokens that end a sequence.
    """

    def __init__(self, stepper: Stepper, sequences: int, ends: Collection[int]) -> None:
        super().__init__()
        self._stepper, self._sequences, self._ends = stepper, sequences, ends
        self._running: dict[int, tuple[Ticket, int]] = {}
        """The tickets by number of their sequence, with the token to be appended next."""

    @property
    def running(self) -> int:
        """Requests that compute."""
        return len(self._running)

    def advance(self) -> bool:
        """One call, one prompt and one step."""
        for sequence in [sequence for sequence, (ticket, _) in self._running.items() if ticket.given_up]:
            self._leave(sequence)
        busy = super().advance() or bool(self.waiting or self._running)
        if self.waiting and len(self._running) < self._sequences:
            self._admit(self.waiting.popleft())
        if self._running:
            self._step()
        return busy

    def close(self) -> None:
        """Give the stepper's memory back."""
        self._stepper.close()

    def _admit(self, ticket: Ticket) -> None:
        if ticket.given_up:
            return
        try:
            sequence, logits = self._stepper.join(ticket.request.prompt)
        except Exception as error:
            ticket.tell(error)
            return
        self._take(sequence, ticket, logits)

    def _step(self) -> None:
        running = list(self._running.items())
        try:
            found = self._stepper.step({sequence: token for sequence, (_, token) in running})
        except Exception as error:
            for sequence, (ticket, _) in running:
                ticket.tell(error)
                self._leave(sequence)
            return
        for i, (sequence, (ticket, _)) in enumerate(running):
            self._take(sequence, ticket, found[i])

    def _take(self, sequence: int, ticket: Ticket, logits: Floats) -> None:
        """Draw a sequence's next token, and let it go on or end; what goes wrong ends this one alone."""
        try:
            token = self._draw(ticket, logits)
        except Exception as error:
            ticket.tell(error)
            goes_on = False
        else:
            ticket.made += 1
            self._running[sequence] = (ticket, token.id)
            ticket.tell(token)
            goes_on = not token.ends and ticket.made < ticket.request.max_tokens
        if not goes_on:
            self._leave(sequence)

    def _draw(self, ticket: Ticket, logits: Floats) -> Token:
        if not np.isfinite(logits).all():
            raise NotFiniteError("generation")
        request = ticket.request
        if ticket.made < request.min_tokens and not request.ignore_eos:
            logits = logits.copy()
            logits[list(self._ends)] = -np.inf
        chosen = ticket.sampler(logits)
        ends = not request.ignore_eos and chosen in self._ends
        if request.logprobs is None:
            return Token(chosen, ends=ends)
        logprobs = log_probabilities(logits)
        return Token(chosen, float(logprobs[chosen]), alternatives(logprobs, request.logprobs), ends)

    def _leave(self, sequence: int) -> None:
        self._running.pop(sequence, None)
        self._stepper.leave(sequence)


class OneAtATime(Queue):
    """Requests that wait for each other, for engines that only generate whole answers, greedily."""

    def __init__(self, engine: Engine, ends: Collection[int]) -> None:
        super().__init__()
        self._engine, self._ends = engine, ends

    def advance(self) -> bool:
        """One call, or one answer."""
        if super().advance():
            return True
        if not self.waiting:
            return False
        ticket = self.waiting.popleft()
        if not ticket.given_up:
            try:
                self._generate(ticket)
            except Exception as error:
                ticket.tell(error)
        return True

    def _generate(self, ticket: Ticket) -> None:
        request = ticket.request
        early = request.min_tokens and not request.ignore_eos
        if request.sampling.temperature or request.logprobs is not None or early:
            raise QbenchError(
                "this engine only generates the most probable tokens; set temperature to 0, no logprobs, and "
                "ignore_eos with min_tokens"
            )
        session = self._engine.session(1, len(request.prompt) + request.max_tokens)
        try:
            generated = session.generate(np.array([request.prompt], np.int64), request.max_tokens)
        finally:
            session.close()
        for chosen in generated.tokens[0].tolist():
            ends = not request.ignore_eos and chosen in self._ends
            ticket.tell(Token(chosen, ends=ends))
            if ends:
                return


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


class Loop:
    """The thread in which batches advance by turns."""

    def __init__(self, batches: Sequence[Queue]) -> None:
        self._batches = batches
        self._work = threading.Event()
        self._stopped = False
        for batch in batches:
            batch.wake = self._work.set
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is under way."""
        self._stopped = True
        self._work.set()
        self._thread.join()
        for batch in self._batches:
            batch.close()

    def _run(self) -> None:
        while not self._stopped:
            self._work.clear()  # before looking: what comes meanwhile sets it again
            worked = [batch.advance() for batch in self._batches]
            if not any(worked):
                self._work.wait()
