"""What a server says of itself: whether it is ready, who it is, which model it serves.

OpenAI's API has `GET /v1/models` and nothing else of that. Versions come from where each server tells them: vLLM
`/version`, Ollama `/api/version`, TGI `/info`, SGLang `/get_server_info`, llama.cpp `/props`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import httpx

from qbench.engine.server.client import BODY_CHARACTERS, Endpoint
from qbench.errors import QbenchError
from qbench.text import suggestion

ANSWER_S = 10.0
"""In which a server answers a question about itself."""

WAIT_S = 0.1
"""Between two looks at a server that starts."""

NAMES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "library": "Ollama"}
"""Servers by `owned_by` of their models."""

VERSIONS = (
    ("/version", "version"),
    ("/api/version", "version"),
    ("/info", "version"),
    ("/get_server_info", "version"),
    ("/props", "build_info"),
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A server and the model that it serves; None where it does not say."""

    name: str
    version: str | None
    model: str
    """The name that requests give."""
    format: str | None = None
    """Of the weights: llama.cpp's name of the quantization."""
    context: int | None = None
    """Tokens that a request has for prompt and answer."""
    vocab_size: int | None = None

    @property
    def kernel(self) -> str:
        """As the rows of its cell name what computes: the server, its version, and the model as it calls it."""
        model = PurePath(self.model).name if PurePath(self.model).is_absolute() else self.model
        return " ".join(filter(None, (self.name, self.version, model, self.format)))


def wait_until_ready(endpoint: Endpoint, what: str, timeout_s: float, check: Callable[[], None]) -> None:
    """Wait for `/health`, or `/v1/models` where there is no such path, to answer.

    Args:
        what: names the server in errors.
        check: raises where there is nothing to wait for any more.

    Raises:
        QbenchError: nothing answers in time.
    """
    deadline = time.monotonic() + timeout_s
    with _client(endpoint) as client:
        while not _ready(client, endpoint):
            check()
            if time.monotonic() > deadline:
                raise QbenchError(
                    f"{what}: {endpoint.root} was not ready after {timeout_s:g} s; give it longer with "
                    "`start_timeout_s:`, or see its output in the cell's log"
                )
            time.sleep(WAIT_S)
    check()  # another server may have answered on the port of one that could not have it


def _ready(client: httpx.Client, endpoint: Endpoint) -> bool:
    try:
        health = client.get(f"{endpoint.root}/health")
        if health.status_code in (404, 405):
            health = client.get(f"{endpoint.root}/v1/models", headers=endpoint.headers())
    except httpx.HTTPError:
        return False
    return health.status_code in (200, 401, 403)  # who asks for a key is ready


def ask(endpoint: Endpoint, asked: str | None, what: str) -> ServerFacts:
    """What a server says.

    Args:
        asked: the model to find; the first unless given.
        what: the cell, for errors: `backends.vllm`.

    Raises:
        QbenchError: it does not answer, refuses the key, is no server of OpenAI's API, or serves another model.
    """
    with _client(endpoint) as client:
        entry = _model(_models(client, endpoint, what), asked, what)
        found = {path: _json(client, f"{endpoint.root}{path}", endpoint) for path, _ in VERSIONS}
    meta = entry.get("meta") if isinstance(entry.get("meta"), Mapping) else {}
    told = [found[path].get(field) for path, field in VERSIONS]
    owner = str(entry.get("owned_by") or "server")
    slots = found["/props"].get("default_generation_settings")
    contexts = (entry.get("max_model_len"), slots.get("n_ctx") if isinstance(slots, Mapping) else None)
    return ServerFacts(
        name="TGI" if "docker_label" in found["/info"] else NAMES.get(owner, owner),
        version=next((str(version) for version in told if version), None),
        model=str(entry["id"]),
        format=found["/props"].get("model_ftype"),
        context=next((int(context) for context in contexts if context), None),
        vocab_size=meta.get("n_vocab") if meta else None,
    )


def _models(client: httpx.Client, endpoint: Endpoint, what: str) -> list[dict[str, Any]]:
    """Entries of `/v1/models`."""
    url = f"{endpoint.root}/v1/models"
    try:
        answer = client.get(url, headers=endpoint.headers())
    except httpx.HTTPError as error:
        raise QbenchError(
            f"{what}: {endpoint.root} does not answer ({error}); start the server, or give a `command:` that does"
        ) from error
    if answer.status_code in (401, 403):
        given = f"the key in {endpoint.api_key_env}" if endpoint.api_key_env else "requests without a key"
        remedy = "check it" if endpoint.api_key_env else "name the variable that holds one with `api_key_env:`"
        raise QbenchError(f"{what}: {endpoint.root} refuses {given} ({answer.status_code}); {remedy}")
    try:
        entries = [entry for entry in answer.json()["data"] if isinstance(entry["id"], str)]
    except (ValueError, KeyError, TypeError) as error:
        words = endpoint.hide(" ".join(answer.text.split())[:BODY_CHARACTERS])
        raise QbenchError(
            f"{what}: {url} is not OpenAI's API (status {answer.status_code}: {words}); give the address that has "
            "/v1/completions below it"
        ) from error
    if not entries:
        raise QbenchError(f"{what}: {endpoint.root} serves no model; load one")
    return entries


def _model(entries: list[dict[str, Any]], asked: str | None, what: str) -> dict[str, Any]:
    names = [entry["id"] for entry in entries]
    if asked is None:
        return entries[0]
    for entry in entries:
        if asked == entry["id"] or asked in (entry.get("aliases") or ()):
            return entry
    raise QbenchError(f"{what}.model: {asked} is not served{suggestion(asked, names)} (there is: {', '.join(names)})")


def _json(client: httpx.Client, url: str, endpoint: Endpoint) -> dict[str, Any]:
    """The JSON object there; an empty one where there is none."""
    try:
        answer = client.get(url, headers=endpoint.headers())
        content = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _client(endpoint: Endpoint) -> httpx.Client:
    return httpx.Client(timeout=ANSWER_S, trust_env=not endpoint.local)
