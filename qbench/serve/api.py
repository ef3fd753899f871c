"""The routes of OpenAI's API: models, completions and chats, streamed and whole."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from qbench import __version__
from qbench.serve import answers, errors, served
from qbench.serve.answers import Asked, Piece
from qbench.serve.errors import ApiError
from qbench.serve.limits import BodyLimit
from qbench.serve.schema import Body, ChatBody, CompletionBody
from qbench.serve.served import Sampling, Served
from qbench.serve.wire import Chat, Completion, Usage

OWN_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names under which a server without a token answers. A page of another site could reach it under a name of its own."""


def create_app(models: Mapping[str, Served], *, token: str | None) -> FastAPI:
    """The application.

    Args:
        models: by the names under which they are asked for.
        token: what requests have to carry (`Authorization: Bearer …`); None to answer this machine alone, without.
    """
    app = FastAPI(title="qbench", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.models = models
    errors.install(app)
    app.add_middleware(BodyLimit)
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_HOSTS, www_redirect=False)
    app.add_api_route("/health", _health)
    app.add_api_route("/version", _version)
    app.include_router(router, dependencies=guard(token))
    return app


def guard(token: str | None) -> list[Any]:
    """Dependencies of a router whose requests have to carry the token.

    Raises:
        ApiError: on a request that does not, status 401.
    """
    if token is None:
        return []
    expected = token.encode()

    def check(found: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if found is None or not secrets.compare_digest(found.credentials.encode(), expected):
            raise ApiError(401, "the token is missing or wrong: `Authorization: Bearer …`", code="invalid_api_key")

    return [Depends(check)]


router = APIRouter(prefix="/v1")


def _health() -> dict[str, str]:
    return {"status": "ok"}


def _version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/models")
def list_models(request: Request) -> dict[str, Any]:
    """Every model that is served."""
    models = request.app.state.models
    return {"object": "list", "data": [_model(name, models[name]) for name in models]}


@router.get("/models/{name}")
def show_model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    return _model(name, find(request, name))


@router.post("/completions", response_model=None)
async def complete(request: Request, body: CompletionBody) -> Response:
    """Continue prompts."""
    model = find(request, body.model)
    asked = [await _asked(model, body, prompt) for prompt in body.prompt]
    asked = [replace(one, prompt_logprobs=body.prompt_logprobs) for one in asked]

    def name(token: int) -> str:
        return f"token_id:{token}" if body.return_tokens_as_token_ids else model.decode([token], special=True)

    wanted, ids = body.logprobs is not None, body.return_token_ids
    shape = Completion(model=body.model, served=model, logprobs=wanted, names=name, token_ids=ids)
    return await _respond(request, model, body, asked, shape)


@router.post("/chat/completions", response_model=None)
async def chat(request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    model = find(request, body.model)
    messages = [message.model_dump() for message in body.messages]
    prompt = tuple(await asyncio.to_thread(model.chat, messages))
    asked = _checked(model, body, prompt, body.most_tokens, body.alternatives)
    shape = Chat(model=body.model, served=model, logprobs=bool(body.logprobs), token_ids=body.return_token_ids)
    return await _respond(request, model, body, [asked], shape)


def find(request: Request, name: str) -> Served:
    """The model of that name.

    Raises:
        ApiError: there is none, status 404.
    """
    models: Mapping[str, Served] = request.app.state.models
    if name not in models:
        known = ", ".join(models)
        raise ApiError(404, f"there is no model {name}; served are: {known}", param="model", code="model_not_found")
    return models[name]


def _model(name: str, model: Served) -> dict[str, Any]:
    """As OpenAI's API describes it, the context as vLLM does, the vocabulary as llama.cpp, and what the cell is."""
    known = {"id": name, "object": "model", "created": STARTED, "owned_by": "qbench"}
    sizes = {"max_model_len": model.context, "meta": {"n_vocab": model.vocab_size}}
    return known | sizes | {"qbench": dict(model.facts)}


STARTED = int(time.time())


async def _asked(model: Served, body: CompletionBody, prompt: str | tuple[int, ...]) -> Asked:
    ids = prompt
    if isinstance(ids, str):
        ids = tuple(await asyncio.to_thread(model.encode, ids, body.add_special_tokens))
    echo = None
    if body.echo:
        echo = prompt if isinstance(prompt, str) else model.decode(ids, special=not body.skip_special_tokens)
    return _checked(model, body, ids, body.max_tokens, body.logprobs, echo)


def _checked(
    model: Served,
    body: Body,
    prompt: tuple[int, ...],
    most: int | None,
    logprobs: int | None,
    echo: str | None = None,
) -> Asked:
    """A prompt that the model can answer.

    Raises:
        ApiError: it is empty, has tokens that the model does not know, or is too long, status 400.
    """
    if not prompt:
        raise ApiError(400, "the prompt has no tokens; give at least one", param="prompt")
    if max(prompt) >= model.vocab_size:
        message = f"token {max(prompt)} is none of the model's, which has {model.vocab_size}"
        raise ApiError(400, message, param="prompt")
    tokens = model.context - len(prompt) if most is None else most
    if len(prompt) + tokens > model.context or (most is None and tokens < 1):
        raise ApiError(
            400,
            f"the context has {model.context} tokens, and {len(prompt)} of prompt and {tokens} of answer were asked "
            "for; shorten the prompt or set max_tokens to fewer",
            param="prompt" if len(prompt) >= model.context else "max_tokens",
            code="context_length_exceeded",
        )
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=body.seed,
    )
    request = served.Request(
        prompt=prompt,
        max_tokens=tokens,
        sampling=sampling,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
    )
    return Asked(request=request, stops=body.stop, special=not body.skip_special_tokens, echo=echo)


async def _respond(
    request: Request, model: Served, body: Body, asked: Sequence[Asked], shape: Completion | Chat
) -> Response:
    usage = Usage(sum(len(one.request.prompt) for one in asked))
    pieces = _counted(answers.side_by_side([answers.answer(model, one) for one in asked]), usage)
    if body.stream:
        return _Events(_events(pieces, shape, body, usage))
    found = await _unless_gone(request, pieces)
    return JSONResponse(shape.whole(found, usage))


Pieces = AsyncGenerator[tuple[int, Piece], None]


async def _counted(pieces: Pieces, usage: Usage) -> Pieces:
    async with aclosing(pieces):
        async for number, piece in pieces:
            usage.completion_tokens += piece.generated
            yield number, piece


async def _unless_gone(request: Request, pieces: Pieces) -> list[tuple[int, Piece]]:
    """All pieces; the generator is closed when the client closes its connection before they are there."""

    async def collect() -> list[tuple[int, Piece]]:
        async with aclosing(pieces):
            return [found async for found in pieces]

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.create_task(collect()), asyncio.create_task(gone())
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ApiError(499, "the client closed its connection")
        return answer.result()
    finally:
        for task in (answer, left):
            task.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _events(pieces: Pieces, shape: Completion | Chat, body: Body, usage: Usage) -> AsyncGenerator[str, None]:
    """An answer as server-sent events; an error after the first of them is one, too."""
    try:
        async with aclosing(pieces):
            async for number, piece in pieces:
                chunk = shape.chunk(number, piece)
                if body.include_usage or body.continuous_usage:
                    chunk["usage"] = usage.json if body.continuous_usage else None
                yield _event(chunk)
        if body.include_usage:
            yield _event(shape.last(usage))
    except Exception as error:
        yield _event(errors.as_api_error(error).body)
    yield "data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Events(StreamingResponse):
    """Server-sent events whose generator is closed however the response ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)
