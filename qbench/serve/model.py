"""A loaded engine as something that the API can serve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from qbench.engine import text
from qbench.engine.base import Engine, Tokens
from qbench.errors import QbenchError
from qbench.serve.batching import Queue, Ticket
from qbench.serve.errors import ApiError
from qbench.serve.sampling import Sampler
from qbench.serve.served import Request, Token

MAX_WAITING = 1024
"""Requests to one model that wait for their turn."""


class Model:
    """A cell. See `qbench.serve.served.Served`.

    Args:
        engine: scores prompts.
        queue: generates, in the thread of its `Loop`.
        tokenizer: the model's own, as transformers loads it; None for random weights of a bare shape.
        context: the most tokens of prompt and answer together.
        facts: see `Served.facts`.
    """

    def __init__(self, engine: Engine, queue: Queue, tokenizer: Any, context: int, facts: Mapping[str, Any]) -> None:
        self.context, self.facts = context, facts
        self.vocab_size = engine.about.vocab_size
        self._engine, self._queue, self._tokenizer = engine, queue, tokenizer
        # A tokenizer keeps what it was last asked for: whether to cut, and to pad.
        self._one_at_a_time = threading.Lock()

    def encode(self, text_: str, special: bool) -> list[int]:
        """See `Served`."""
        with self._one_at_a_time:
            return text.encode(self._the_tokenizer, text_, self.vocab_size, special=None if special else False)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See `Served`."""
        with self._one_at_a_time:
            return text.chat(self._the_tokenizer, messages)

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """See `Served`; without a tokenizer there is no text."""
        if self._tokenizer is None:
            return ""
        found: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return found

    @property
    def _the_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise QbenchError("prompt: the model has no tokenizer; send token ids")
        return self._tokenizer

    async def generate(self, request: Request) -> AsyncGenerator[Token, None]:
        """See `Served`."""
        loop, found = asyncio.get_running_loop(), asyncio.Queue[Token | Exception]()

        def tell(what: Token | Exception) -> None:
            loop.call_soon_threadsafe(found.put_nowait, what)

        if len(self._queue.waiting) >= MAX_WAITING:
            raise ApiError(503, f"{MAX_WAITING} requests wait already; ask again later")
        ticket = Ticket(request, tell, Sampler(request.sampling))
        self._queue.submit(ticket)
        try:
            for _ in range(request.max_tokens):
                token = await found.get()
                if isinstance(token, Exception):
                    raise token
                yield token
                if token.ends:
                    return
        finally:
            ticket.given_up = True
            self._queue.wake()

    async def score(self, prompt: Tokens, logprobs: int) -> list[Token]:
        """See `Served`."""
        first = Token(prompt[0])
        if len(prompt) == 1:
            return [first]
        window = np.array(prompt, np.int64)
        scores = await asyncio.wrap_future(self._queue.call(lambda: self._engine.score(window, top_k=max(logprobs, 1))))
        assert scores.words is not None
        assert scores.outlines is not None
        assert scores.best is not None
        words, values = scores.words[:, :logprobs].tolist(), scores.outlines[:, :logprobs].tolist()
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(words, values, strict=True)]
        best = (scores.truth >= scores.best).tolist()
        rest = zip(prompt[1:], scores.truth.tolist(), tops, best, strict=True)
        return [first, *(Token(token, value, top, best=is_best) for token, value, top, is_best in rest)]


def ending_tokens(generation: Mapping[str, Any], tokenizer: Any) -> Collection[int]:
    """Tokens that end an answer: of generation_config.json, as transformers' `generate` has it, and the tokenizer's."""
    listed = generation.get("eos_token_id")
    own = getattr(tokenizer, "eos_token_id", None)
    found = [*(listed if isinstance(listed, list) else [listed]), own]
    return frozenset(token for token in found if token is not None)
