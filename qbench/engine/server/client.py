"""An asynchronous client of `POST /v1/completions`, streamed: when each piece of an answer came, and what went wrong.

A server streams server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): lines `data: `
with a JSON object each, and `data: [DONE]` at the end. Most servers send one event a token; some put several tokens
into one event when they come close together, and hold back bytes that are no whole character yet. So an event is a
moment at which something arrived, and how many tokens there were is what the server's `usage` says in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from qbench.errors import QbenchError

GREEDY: Mapping[str, Any] = {"temperature": 0.0, "top_k": 1, "seed": 0}
"""The most probable token each time."""

KEPT_S = 2.0
"""That a connection is kept open without a request."""

BODY_CHARACTERS = 300
"""Of a server's own words about an error that are passed on."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served. The key is read from the environment whenever it is needed, and kept nowhere."""

    url: str
    """Of the server, with or without `/v1` at its end."""
    model: str
    """The name that requests give."""
    api_key_env: str | None = None
    """Name of the environment variable with the key."""

    @property
    def root(self) -> str:
        """The URL without `/v1`, where servers have what is their own."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def local(self) -> bool:
        """Whether the server is on this machine by its address."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def headers(self) -> dict[str, str]:
        """Of a request.

        Raises:
            QbenchError: the variable with the key is not set.
        """
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def hide(self, text: str) -> str:
        """`text` without the key: some servers repeat it in what they say of it."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return text.replace(key, "***") if key else text

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise QbenchError(f"api_key_env: the variable {self.api_key_env} is not set; export it before the run")
        return key


@dataclass(slots=True)
class Completion:
    """One request and its answer. Moments are on the clock of `time.perf_counter`."""

    sent_s: float
    """When the request was handed to the client."""
    token_s: list[float] = field(default_factory=list)
    """When each event with new text, or new token ids, arrived."""
    tokens: int = 0
    """Generated: by the server's `usage`; the events of `token_s` where it sends none, see `counted`."""
    prompt_tokens: int | None = None
    """By the server's `usage`."""
    cached_tokens: int | None = None
    """Of the prompt, which the server had read before, where its `usage` says so."""
    text: str = ""
    token_ids: list[int] | None = None
    """Where the server sends them (vLLM's `return_token_ids`)."""
    counted: bool = False
    """Whether `tokens` is only a count of events."""
    finish: str | None = None
    """Why it ended, in the server's word: `length` or `stop`."""
    error: str | None = None
    """The kind of error: connect, timeout, http_<status>, closed, bad_json, no_stream, server, wrong_counts, no_tokens.
    """
    detail: str = ""
    """The error in a sentence, without the key."""
    client_delay_s: float = 0.0
    """Seconds that this client took: until the request had left (waiting for a connection included), and handling what
    came. They are part of the times above."""
    end_s: float = 0.0
    """When the answer was complete, or had failed."""

    def fail(self, kind: str, detail: str) -> None:
        """Note an error; the first one stays."""
        if self.error is None:
            self.error, self.detail = kind, detail


def open_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """A client without a limit of its own to what is under way. Proxies are for servers that are not here.

    Connections are kept for less time than servers keep them (uvicorn and llama.cpp: 5 s), or a request would now and
    then meet one that is being closed.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_S)
    return httpx.AsyncClient(limits=limits, trust_env=not endpoint.local, follow_redirects=False)


def request_body(endpoint: Endpoint, prompt: str | Sequence[int], max_tokens: int) -> dict[str, Any]:
    """A request for `max_tokens` greedy tokens, streamed, that nothing ends early where the server knows how.

    `ignore_eos` is known to vLLM, SGLang and llama.cpp, `min_tokens` to vLLM; servers pass over what they do not know.
    """
    return {
        "model": endpoint.model,
        "prompt": prompt if isinstance(prompt, str) else [int(token) for token in prompt],
        "max_tokens": max_tokens,
        "min_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **GREEDY,
    }


async def complete(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    prompt: str | Sequence[int],
    max_tokens: int,
    *,
    timeout_s: float,
    extra: Mapping[str, Any] | None = None,
) -> Completion:
    """Send one streamed request and read its answer; what a server does wrong is in the answer's `error`.

    Args:
        prompt: text, or token ids for a server that takes them.
        timeout_s: for the whole of it.
        extra: further fields of the request, or others than `request_body` has; None takes a field away.

    Raises:
        QbenchError: the variable with the key is not set.
    """
    fields = request_body(endpoint, prompt, max_tokens) | dict(extra or {})
    body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    headers = {**endpoint.headers(), "Content-Type": "application/json", "Accept": "text/event-stream"}
    answer = Completion(time.perf_counter())

    async def left(event: str, _info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.complete"):
            answer.client_delay_s = time.perf_counter() - answer.sent_s

    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(
                "POST", f"{endpoint.root}/v1/completions",
                content=body, headers=headers, timeout=httpx.Timeout(timeout_s), extensions={"trace": left},
            ) as response,
        ):  # fmt: skip
            await _read(response, answer)
    except (TimeoutError, httpx.TimeoutException):
        answer.fail("timeout", f"no answer within {timeout_s:g} s ({len(answer.token_s)} pieces of it came)")
    except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
        answer.fail("connect", f"{endpoint.root} does not answer ({error})")
    except httpx.HTTPError as error:
        answer.fail("closed", f"the server closed the stream ({type(error).__name__}: {error})")
    answer.end_s = time.perf_counter()
    answer.detail = endpoint.hide(answer.detail)
    _check_counts(answer, max_tokens)
    return answer


async def post(
    client: httpx.AsyncClient, endpoint: Endpoint, fields: Mapping[str, Any], *, timeout_s: float
) -> dict[str, Any]:
    """A completion that is not streamed: its JSON.

    Raises:
        QbenchError: the server does not answer, or not with a JSON object.
    """
    where = f"{endpoint.root}/v1/completions"
    try:
        answer = await client.post(
            where, json={"model": endpoint.model, **fields}, headers=endpoint.headers(), timeout=timeout_s
        )
    except httpx.HTTPError as error:
        raise QbenchError(f"{where}: {type(error).__name__} {endpoint.hide(str(error))}".rstrip()) from error
    words = endpoint.hide(" ".join(answer.text.split())[:BODY_CHARACTERS])
    if answer.status_code != 200:
        raise QbenchError(f"{where} answered {answer.status_code}: {words}")
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise QbenchError(f"{where} answered with something that is no JSON object: {words}")
    return content


async def _read(response: httpx.Response, answer: Completion) -> None:
    kind = response.headers.get("content-type", "")
    if response.status_code != 200:
        await response.aread()
        words = " ".join(response.text.split())[:BODY_CHARACTERS]
        answer.fail(f"http_{response.status_code}", f"the server answered {response.status_code}: {words}")
    elif "event-stream" not in kind:
        answer.fail("no_stream", f"the server does not stream: it answered with {kind or 'no content type'}")
    else:
        await _read_events(response, answer)


async def _read_events(response: httpx.Response, answer: Completion) -> None:
    async for line in response.aiter_lines():
        now = time.perf_counter()
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if not line.startswith("data:") or not data:  # comments keep a connection open
            continue
        if not _take(data, now, answer):
            return
        answer.client_delay_s += time.perf_counter() - now
    if answer.finish is None:
        answer.fail("closed", f"the stream ended in the middle of an answer, after {len(answer.token_s)} pieces")


def _take(data: str, now: float, answer: Completion) -> bool:
    """One event; whether to read on."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            answer.fail("server", f"the server ended the stream: {str(error)[:BODY_CHARACTERS]}")
            return False
        if usage := event.get("usage"):
            answer.tokens = int(usage["completion_tokens"])
            answer.prompt_tokens = int(usage["prompt_tokens"])
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        for choice in event.get("choices") or ():
            text, ids = choice.get("text") or "", choice.get("token_ids") or []
            if text or ids:
                answer.token_s.append(now)
                answer.text += text
            if ids:
                answer.token_ids = [*(answer.token_ids or ()), *map(int, ids)]
            answer.finish = choice.get("finish_reason") or answer.finish
    except (ValueError, KeyError, TypeError, AttributeError):
        answer.fail("bad_json", f"an event of the stream is not what OpenAI's API says: {data[:BODY_CHARACTERS]}")
        return False
    return True


def _check_counts(answer: Completion, max_tokens: int) -> None:
    """Hold the server's count against what came: it may be more than the events, and never fewer."""
    arrived = len(answer.token_s) if answer.token_ids is None else len(answer.token_ids)
    if answer.prompt_tokens is None:
        answer.tokens, answer.counted = arrived, answer.token_ids is None
    if answer.error is not None:
        return
    exact = answer.token_ids is not None
    if answer.tokens > max_tokens or answer.tokens < arrived or (exact and answer.tokens != arrived):
        answer.fail(
            "wrong_counts",
            f"the server says that it generated {answer.tokens} tokens: {max_tokens} were asked for, {arrived} came",
        )
    elif not answer.token_s:
        answer.fail("no_tokens", "the server answered without a token")
