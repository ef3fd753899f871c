"""Turns: what a person asks of two backends, who is asked under which letter, and what the page may know of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qbench.errors import QbenchError
from qbench.serve.answers import Asked, Piece, answer
from qbench.serve.errors import ApiError
from qbench.serve.pair import Pair, Source, figures
from qbench.serve.served import Request, Sampling, Served
from qbench.serve.store import SIDES, Answer, Conversation, State, Store, Turn

MAX_PROMPT = 200_000
"""Characters."""

TITLE = 60
"""Characters of a prompt that name its conversation."""


class Settings(BaseModel):
    """What a turn was asked with."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    system: str = Field("", max_length=MAX_PROMPT)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=65_536)
    seed: int | None = Field(None, ge=0, lt=2**53)  # what JavaScript counts to
    """Of both answers; drawn by the server if None."""


class Ask(BaseModel):
    """A prompt for both backends."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    conversation: str | None = None
    """None for a new one."""
    replaces: str | None = None
    """The conversation's last turn, which is asked again or was edited."""
    blind: bool = False
    settings: Settings = Field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Compared:
    """The two backends, the model that both of them are of, and where conversations are kept."""

    backends: Mapping[str, Served]
    model: str
    store: Store
    examples: Sequence[str] = ()
    """Prompts that an empty page proposes."""


def shown(turn: Turn) -> dict[str, Any]:
    """A turn as the page may have it: of a blind one without a vote, the two texts and whether they have ended."""
    hidden = turn.blind and turn.choice is None
    return {
        "id": turn.id,
        "prompt": turn.prompt,
        "settings": turn.settings,
        "mode": turn.mode,
        "blind": turn.blind,
        "hidden": hidden,
        "replaced": turn.replaced,
        "created": turn.created,
        "choice": turn.choice,
        "answers": {
            side: {"text": one.text, "state": one.state, **({} if hidden else {"backend": one.backend, **figures(one)})}
            for side, one in turn.answers.items()
        },
    }


class Turns:
    """Begins turns, answers them, and ends them."""

    def __init__(self, compared: Compared) -> None:
        self._compared, self._store = compared, compared.store
        self._running: dict[str, Pair] = {}
        """By conversation."""
        self.mode = "chat" if _can_chat(compared.backends) else "completion"

    def conversation(self, chosen: str) -> Conversation:
        """One of the store.

        Raises:
            ApiError: there is none of that id.
        """
        if (found := self._store.conversation(chosen)) is None:
            raise ApiError(404, "this conversation is not in the store; it may have been deleted")
        return found

    def turn(self, chosen: str) -> Turn:
        """One of the store.

        Raises:
            ApiError: there is none of that id.
        """
        if (found := self._store.turn(chosen)) is None:
            raise ApiError(404, "this turn is not in the store; its conversation may have been deleted")
        return found

    def others(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot go on here, if it was with other backends."""
        names = {one.backend for turn in conversation.turns for one in turn.answers.values()}
        if conversation.model == self._compared.model and names <= set(self._compared.backends):
            return None
        return f"This conversation is with {' and '.join(sorted(names))} of {conversation.model}. Start a new one here."

    def check_votable(self, turn: Turn) -> None:
        """A vote is on two whole answers whose names nobody has seen.

        Raises:
            ApiError: this turn takes none.
        """
        if not turn.blind:
            raise ApiError(409, "only a blind turn takes a vote; this one showed the names")
        if turn.replaced:
            raise ApiError(409, "this turn was asked again; vote on the one that replaced it")
        if any(one.state not in (State.DONE, State.STOPPED) for one in turn.answers.values()):
            raise ApiError(409, "a vote needs two answers that have ended without an error")

    def begin(self, wanted: Ask) -> tuple[str, Pair]:
        """A conversation and its new turn, which `stream` answers.

        Raises:
            ApiError: the conversation is not there, cannot go on, or is being answered.
        """
        before: list[Turn] = []
        if wanted.conversation:
            found = self.conversation(wanted.conversation)
            if wanted.conversation in self._running:
                raise ApiError(409, "the last prompt is still being answered; stop it first")
            if why := self.others(found):
                raise ApiError(409, why)
            before = [turn for turn in found.turns if not turn.replaced]
        if wanted.replaces:
            if not before or before[-1].id != wanted.replaces:
                raise ApiError(409, "only the last prompt of a conversation can be edited or asked again")
            before.pop()
        conversation = wanted.conversation or self._store.start(self._compared.model, _title(wanted.prompt))
        settings = wanted.settings
        if settings.seed is None:
            settings = settings.model_copy(update={"seed": secrets.randbelow(2**31)})
        names = list(self._compared.backends)
        if wanted.blind and secrets.randbelow(2):
            names.reverse()
        answers = {
            side: Answer(name, weight_bytes=self._compared.backends[name].facts.get("weight_bytes"))
            for side, name in zip(SIDES, names, strict=True)
        }
        turn = self._store.add_turn(
            conversation, wanted.prompt, settings.model_dump(), answers,
            mode=self.mode, blind=wanted.blind, replaces=wanted.replaces,
        )  # fmt: skip
        sources = {side: self._source(one.backend, before, wanted.prompt, settings) for side, one in answers.items()}
        return conversation, Pair(self._store, turn, answers, sources, blind=wanted.blind)

    async def stream(self, begun: tuple[str, Pair]) -> AsyncGenerator[str, None]:
        """A line of JSON an event: the turn, what `Pair.events` gives, and the turn when it has ended."""
        conversation, pair = begun
        self._running[conversation] = pair
        try:
            yield _line({"type": "turn", "conversation": conversation, "turn": shown(self.turn(pair.turn))})
            async with aclosing(pair.events()) as events:
                async for event in events:
                    yield _line(event)
        finally:
            self._running.pop(conversation, None)
        if (ended := self._store.turn(pair.turn)) is not None:
            yield _line({"type": "turn", "conversation": conversation, "turn": shown(ended)})

    def stop(self, turns: Iterable[Turn]) -> None:
        """End the answers of those that are being answered."""
        wanted = {turn.id for turn in turns}
        for pair in self._running.values():
            if pair.turn in wanted:
                pair.stop()

    def _source(self, name: str, before: Sequence[Turn], prompt: str, settings: Settings) -> Source:
        served = self._compared.backends[name]
        if self.mode == "completion":
            return partial(_answer, served, partial(served.encode, prompt, special=True), settings)
        messages = [{"role": "system", "content": settings.system}] if settings.system else []
        for turn in before:
            own = next((one.text for one in turn.answers.values() if one.backend == name), "")
            messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": own}]
        messages.append({"role": "user", "content": prompt})
        return partial(_answer, served, partial(served.chat, messages), settings)


async def _answer(
    served: Served, encode: Callable[[], Sequence[int]], settings: Settings
) -> AsyncGenerator[Piece, None]:
    """What a model says.

    Raises:
        QbenchError: the prompt leaves no room for an answer.
    """
    prompt = tuple(await asyncio.to_thread(encode))
    room = served.context - len(prompt)
    if room < 1:
        raise QbenchError(
            f"the conversation has {len(prompt):,} tokens, and the model takes {served.context:,} with its answer; "
            "shorten the prompt, or start a new conversation"
        )
    sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed)
    request = Request(prompt=prompt, max_tokens=min(room, settings.max_tokens), sampling=sampling)
    async with aclosing(answer(served, Asked(request=request))) as pieces:
        async for piece in pieces:
            yield piece


def _title(prompt: str) -> str:
    line = " ".join(prompt.split()) or "…"
    return line if len(line) <= TITLE else f"{line[: TITLE - 1].rstrip()}…"


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def _can_chat(backends: Mapping[str, Served]) -> bool:
    """Whether all have a chat template; without one they can only continue a text."""
    try:
        for served in backends.values():
            served.chat([{"role": "user", "content": "Hello"}])
    except QbenchError:
        return False
    return True
