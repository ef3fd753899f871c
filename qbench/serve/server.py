"""The address that is listened at, who may ask there, and the server until it is told to end."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

import uvicorn
from fastapi import FastAPI

from qbench.errors import QbenchError

GRACE_S = 2
"""Seconds that answers have to end in once the server is told to."""


def read_token(host: str, variable: str | None) -> str | None:
    """The token that requests have to carry; None for this machine alone.

    Args:
        variable: the name of the environment variable that holds it.

    Raises:
        QbenchError: another address is to be listened at without one, or the variable is empty.
    """
    if variable is None:
        if not _is_loopback(host):
            raise QbenchError(
                f"--host {host}: others can reach this address; name the variable of a token with --token-env"
            )
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise QbenchError(f"--token-env {variable}: the variable is not set; put the token into it")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which refuses connections until `run` listens.

    Args:
        port: 0 for one that is free.

    Raises:
        QbenchError: the port is in use, or the address is none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
    except OSError as error:
        raise QbenchError(f"--host {host}: {error.strerror or error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _refused(host, port, error) from error
    return found


def _refused(host: str, port: int, error: OSError) -> QbenchError:
    if error.errno == errno.EADDRINUSE:
        return QbenchError(f"--port {port}: is in use; choose another, or 0 for one that is free")
    if error.errno == errno.EACCES:
        return QbenchError(f"--port {port}: may not be used; choose one from 1024 on")
    return QbenchError(f"--host {host}: {error.strerror or error}; choose an address of this machine")


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, whose handlers are called in the end.

    Raises:
        QbenchError: another process has begun to listen at the address.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(socket.SOMAXCONN)
    except OSError as error:
        raise _refused(host, port, error) from error
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_S, ws="none"
    )
    uvicorn.Server(config).run(sockets=[bound])


def url(bound: socket.socket) -> str:
    """Where the API is."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if bound.family == socket.AF_INET6 else f"http://{host}:{port}/v1"
