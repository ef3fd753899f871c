"""From tokens to an answer: pieces of text with their tokens, until a stop string, an end or the length ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Literal

from qbench.serve.served import Request, Served, Token
from qbench.serve.text import Detokenizer, Stops

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to an answer."""

    text: str
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()
    """Scored tokens of the prompt, for those who ask for them apart from the answer."""
    finish: Finish | None = None
    """Why the answer ends here; None where it goes on."""
    generated: int = 0
    """How many of the tokens are new, and not the prompt's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One prompt of a request, checked and ready."""

    request: Request
    """`max_tokens` may be 0 here: then nothing is generated."""
    stops: Sequence[str] = ()
    special: bool = False
    """Whether the answer's text shows special tokens."""
    prompt_logprobs: int | None = None
    """Alternatives for every token of the prompt, apart from the answer; None to leave them out."""
    echo: str | None = None
    """The prompt's text, to be put in front; None to leave it out."""


async def answer(served: Served, asked: Asked) -> AsyncGenerator[Piece, None]:
    """The pieces of an answer; the last one says why it ends."""
    request = asked.request
    if asked.prompt_logprobs is not None:
        yield Piece("", prompt=tuple(await served.score(request.prompt, asked.prompt_logprobs)))
    if asked.echo is not None:
        scored = [] if request.logprobs is None else await served.score(request.prompt, request.logprobs)
        yield Piece(asked.echo, tuple(scored), finish=None if request.max_tokens else "length")
    elif not request.max_tokens:
        yield Piece("", finish="length")
    if not request.max_tokens:
        return
    text = Detokenizer(partial(served.decode, special=asked.special), request.prompt)
    stops = Stops(asked.stops)
    count = 0
    async with aclosing(served.generate(request)) as tokens:
        async for token in tokens:
            count += 1
            new = stops.add("" if token.ends else text.add(token.id))
            finish: Finish | None = "length" if count == request.max_tokens else None
            if not stops.found and (finish or token.ends):
                new += stops.add(text.finish())
                new += stops.finish()
            if stops.found or token.ends:
                finish = "stop"
            yield Piece(new, (token,), finish=finish, generated=1)
            if finish:
                return


async def side_by_side(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several answers as they come, each with the number of its answer; the first error ends all."""
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def follow(number: int, stream: AsyncGenerator[Piece, None]) -> None:
        ended: BaseException | None = None
        try:
            async with aclosing(stream):
                async for piece in stream:
                    queue.put_nowait((number, piece))
        except Exception as error:
            ended = error
        queue.put_nowait((number, ended))

    tasks = [asyncio.create_task(follow(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
