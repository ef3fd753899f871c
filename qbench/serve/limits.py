"""A limit for the body of requests."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qbench.serve.errors import ApiError

MAX_BODY_BYTES = 8 << 20
"""Of a request: a prompt of a million tokens as numbers."""

TOO_LARGE = f"the request is too large; it may have {MAX_BODY_BYTES} bytes"


class BodyLimit:
    """Answers a request with a longer body with status 413.

    What the client sends of it is read and dropped: a connection that were closed before would lose the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            await _drop(receive)
            await JSONResponse(ApiError(413, TOO_LARGE).body, 413)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                await _drop(receive)
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, counted, send)


async def _drop(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass
