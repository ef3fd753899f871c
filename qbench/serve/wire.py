"""Answers in the shapes of OpenAI's API, streamed and whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qbench.serve.answers import Piece
from qbench.serve.served import Served, Token


@dataclass(slots=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int = 0

    @property
    def json(self) -> dict[str, int]:
        """As it goes over the wire."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True, kw_only=True)
class Completion:
    """The shape of `/v1/completions`."""

    model: str
    served: Served
    logprobs: bool = False
    names: Callable[[int], str]
    """What log-probabilities call a token."""
    token_ids: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, pieces: Iterable[tuple[int, Piece]], usage: Usage) -> dict[str, Any]:
        """An answer that is complete."""
        by_number: dict[int, list[Piece]] = {}
        for number, piece in pieces:
            by_number.setdefault(number, []).append(piece)
        choices = [self._choice(number, join(by_number[number])) for number in sorted(by_number)]
        return self._frame(choices) | {"usage": usage.json}

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        """A piece of one."""
        return self._frame([self._choice(number, piece)])

    def last(self, usage: Usage) -> dict[str, Any]:
        """The chunk without choices that ends a stream with usage."""
        return self._frame([]) | {"usage": usage.json}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(number, piece.tokens) if self.logprobs else None
        choice = {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
        if piece.prompt:
            choice["prompt_logprobs"] = [self._ranked(token) for token in piece.prompt]
        return choice | ({"token_ids": new_ids(piece)} if self.token_ids else {})

    def _logprobs(self, number: int, tokens: Iterable[Token]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            name = self.names(token.id)
            found["tokens"].append(name)
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append(self._alternatives(token))
            offset = self.offsets.get(number, 0)
            found["text_offset"].append(offset)
            self.offsets[number] = offset + len(name)
        return found

    def _ranked(self, token: Token) -> dict[str, Any] | None:
        """As vLLM gives a token of a prompt; the rank of one that is not among the first is not known."""
        if token.logprob is None:
            return None
        ranks = {other: rank for rank, (other, _) in enumerate(token.top, start=1)}
        own = ranks.get(token.id, 1 if token.best else None)
        told = [(token.id, token.logprob, own), *((other, logprob, ranks[other]) for other, logprob in token.top)]
        return {
            str(other): {"logprob": logprob, "rank": rank, "decoded_token": self.served.decode([other], special=True)}
            for other, logprob, rank in told
        }

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        """The most probable ones and the token itself; of tokens with the same text, the more probable one."""
        if token.logprob is None:
            return None
        named: dict[str, float] = {}
        for other, logprob in (*token.top, (token.id, token.logprob)):
            named.setdefault(self.names(other), logprob)
        return named


@dataclass(slots=True, kw_only=True)
class Chat:
    """The shape of `/v1/chat/completions`."""

    model: str
    served: Served
    logprobs: bool = False
    token_ids: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    begun: bool = False

    def whole(self, pieces: Iterable[tuple[int, Piece]], usage: Usage) -> dict[str, Any]:
        """An answer that is complete."""
        joined = join([piece for _, piece in pieces])
        message = {"role": "assistant", "content": joined.text}
        choice = self._choice(joined) | {"message": message}
        return self._frame("chat.completion", [choice]) | {"usage": usage.json}

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        """A piece of one; the first names the role."""
        delta = {"content": piece.text} | ({} if self.begun else {"role": "assistant"})
        self.begun = True
        return self._frame("chat.completion.chunk", [self._choice(piece) | {"delta": delta}])

    def last(self, usage: Usage) -> dict[str, Any]:
        """The chunk without choices that ends a stream with usage."""
        return self._frame("chat.completion.chunk", []) | {"usage": usage.json}

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = {"content": [self._logprob(token) for token in piece.tokens]} if self.logprobs else None
        choice = {"index": 0, "logprobs": logprobs, "finish_reason": piece.finish}
        return choice | ({"token_ids": new_ids(piece)} if self.token_ids else {})

    def _logprob(self, token: Token) -> dict[str, Any]:
        own = self._named(token.id, token.logprob)
        return own | {"top_logprobs": [self._named(other, logprob) for other, logprob in token.top]}

    def _named(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.served.decode([token], special=True)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def join(pieces: Iterable[Piece]) -> Piece:
    """All pieces of an answer as one."""
    pieces = list(pieces)
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(token for piece in pieces for token in piece.prompt),
        pieces[-1].finish,
        sum(piece.generated for piece in pieces),
    )


def new_ids(piece: Piece) -> list[int]:
    """Ids of the tokens that are not the prompt's."""
    return [token.id for token in piece.tokens[len(piece.tokens) - piece.generated :]]
