"""A model that says what a test tells it to, when a test tells it to: to stop, to fail and to be slow on purpose."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from qbench.engine.base import Tokens
from qbench.errors import QbenchError
from qbench.serve.served import Request, Token


@dataclass
class Scripted:
    """Each word of `script` is a token; `chat` and `encode` keep what they were asked."""

    script: str = ""
    step_s: float = 0.0
    fails_after: int | None = None
    """Words."""
    waits_after: int | None = None
    """Words, then it waits until `go` is set, or it is closed."""
    template: bool = True
    weight_bytes: int = 6_500_000
    context: int = 4096
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    closed: int = 0
    words: list[str] = field(default_factory=lambda: ["?"])
    vocab_size: int = 1_000_000

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"weight_bytes": self.weight_bytes}

    def encode(self, text: str, *, special: bool | None = None) -> Tokens:
        self.asked.append(text)
        return (0,)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        if not self.template:
            raise QbenchError("the tokenizer has no chat template")
        self.asked.append([dict(message) for message in messages])
        return (0,)

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        return "".join(self.words[one] for one in ids)

    async def generate(self, request: Request) -> AsyncGenerator[Token, None]:
        self.requests.append(request)
        words = [word + " " for word in self.script.split(" ")]
        try:
            for count, word in enumerate(words):
                if count == self.fails_after:
                    raise QbenchError("the worker of this cell was killed")
                while count == self.waits_after and not self.go.is_set():
                    await asyncio.sleep(0.005)
                await asyncio.sleep(self.step_s)
                self.words.append(word)
                yield Token(len(self.words) - 1, ends=count == len(words) - 1 and word == " ")
        finally:
            self.closed += 1

    async def score(self, prompt: Tokens, logprobs: int) -> list[Token]:
        raise NotImplementedError


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[tuple[str, uvicorn.Server]]:
    """The application on a free port of this machine: its address, and the server to be told to leave."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(10)
