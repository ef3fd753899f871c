"""Errors in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qbench.errors import NotFiniteError, QbenchError, describe_fault


class ApiError(Exception):
    """A request that cannot be answered, and why."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As it goes over the wire."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


MESSAGES = {
    404: "there is nothing at {path}; the API is /v1/completions, /v1/chat/completions and /v1/models",
    405: "{path} does not take {method}",
}
"""Of statuses for which the framework has no sentence."""


def install(app: FastAPI) -> None:
    """Let every error of `app` have the shape of OpenAI's."""

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        found = as_api_error(error)
        headers = {"WWW-Authenticate": "Bearer"} if found.status == 401 else None
        return JSONResponse(found.body, found.status, headers)

    async def framework_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = MESSAGES.get(error.status_code, str(error.detail))
        message = known.format(path=request.url.path, method=request.method)
        return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)

    for kind in (ApiError, QbenchError, RequestValidationError, Exception):
        app.add_exception_handler(kind, api_error)
    app.add_exception_handler(HTTPException, framework_error)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception; what is our own fault is printed, too."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QbenchError) and not isinstance(error, NotFiniteError):
        return ApiError(400, str(error))
    if isinstance(error, RequestValidationError):
        return _refusal(error)
    traceback.print_exception(error)
    return ApiError(500, describe_fault(error)[1])


def _refusal(error: RequestValidationError) -> ApiError:
    """The first of what is wrong with a body, with the name of the option."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    if not place and first["type"] != "value_error":
        return ApiError(400, "the body is no JSON object; send one, with `Content-Type: application/json`")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "not supported; leave it out"
    name = ".".join(place)
    return ApiError(400, f"{name}: {message}" if name else message, param=name or None)
