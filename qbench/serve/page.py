"""The page for two backends side by side, as routes beside those of the API.

What a blind turn must not tell before its vote, no answer of these routes holds: names, figures, errors, and how fast
either backend was (see `qbench.serve.pair`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib import resources
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from qbench.serve.api import guard
from qbench.serve.errors import ApiError
from qbench.serve.export import as_json, as_markdown
from qbench.serve.store import Choice
from qbench.serve.turns import Ask, Compared, Turns, shown

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Nothing comes from elsewhere and nothing goes there (W3C, Content Security Policy Level 3)."""

HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}  # fmt: skip

FILES = {
    "page.css": ("qbench.serve.static", "text/css"),
    "page.js": ("qbench.serve.static", "text/javascript"),
    "api.js": ("qbench.serve.static", "text/javascript"),
    "turn.js": ("qbench.serve.static", "text/javascript"),
    "difference.js": ("qbench.serve.static", "text/javascript"),
    "icon.svg": ("qbench.serve.static", "image/svg+xml"),
    "colors.css": ("qbench.show", "text/css"),
}
"""What the page loads: its package and its type."""


class Vote(BaseModel):
    """Which answer is preferred."""

    model_config = ConfigDict(extra="forbid")

    choice: Choice


def add_page(app: FastAPI, compared: Compared, *, token: str | None) -> None:
    """Give what `qbench.serve.api.create_app` made the page; the token guards what it asks for, not its files."""
    app.include_router(files)
    app.include_router(_make_router(compared), dependencies=guard(token))


files = APIRouter()


@files.get("/")
async def show_page() -> Response:
    """The page, which asks for the rest."""
    return _file("index.html", "qbench.serve.static", "text/html")


@files.get("/static/{name}")
async def show_file(name: str) -> Response:
    """What the page loads."""
    if name not in FILES:
        raise ApiError(404, f"there is no file {name}")
    return _file(name, *FILES[name])


def _make_router(compared: Compared) -> APIRouter:
    router = APIRouter(prefix="/compare")
    turns, store = Turns(compared), compared.store

    @router.get("/about")
    async def about() -> dict[str, Any]:
        return {
            "backends": list(compared.backends),
            "model": compared.model,
            "mode": turns.mode,
            "examples": list(compared.examples),
        }

    @router.get("/conversations")
    async def conversations() -> list[dict[str, Any]]:
        return [{"id": one.id, "title": one.title, "created": one.created} for one in store.conversations()]

    @router.get("/conversations/{chosen}")
    async def conversation(chosen: str) -> dict[str, Any]:
        found = turns.conversation(chosen)
        return {
            "id": found.id,
            "title": found.title,
            "others": turns.others(found),
            "turns": [shown(turn) for turn in found.turns if not turn.replaced],
        }

    @router.delete("/conversations/{chosen}")
    async def delete(chosen: str) -> dict[str, Any]:
        turns.stop(turns.conversation(chosen).turns)
        store.delete(chosen)
        return {}

    @router.get("/conversations/{chosen}/export")
    async def export(chosen: str, format: Literal["markdown", "json"]) -> Response:
        found = turns.conversation(chosen)
        if format == "json":
            return Response(as_json(found), media_type="application/json", headers=HEADERS)
        return Response(as_markdown(found), media_type="text/markdown", headers=HEADERS)

    @router.post("/turns")
    async def ask(wanted: Ask) -> StreamingResponse:
        return _Lines(turns.stream(turns.begin(wanted)))

    @router.post("/turns/{turn}/stop")
    async def stop(turn: str) -> dict[str, Any]:
        turns.stop([turns.turn(turn)])
        return {}

    @router.post("/turns/{turn}/vote")
    async def vote(turn: str, given: Vote) -> dict[str, Any]:
        turns.check_votable(turns.turn(turn))
        store.vote(turn, given.choice)
        return shown(turns.turn(turn))

    return router


class _Lines(StreamingResponse):
    """Lines of JSON, whose generator is closed however the response ends."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, headers=HEADERS)
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        async with aclosing(self._lines):
            await super().__call__(scope, receive, send)


def _file(name: str, package: str, kind: str) -> Response:
    return Response(resources.files(package).joinpath(name).read_bytes(), media_type=kind, headers=HEADERS)
