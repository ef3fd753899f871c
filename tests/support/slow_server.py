"""A real HTTP server whose speed is known: it answers so many completions at a time, a token every few milliseconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[int], str | None]


@dataclass
class Speed:
    """Times are slept, so that nothing is ever faster."""

    places: int = 2
    prefill_s: float = 0.01
    token_s: float = 0.002
    fault: Fault = lambda number: None
    """By the number of the request: http_500, closed, hang, or None."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests."""
    most: int = 0
    """Requests that were being answered at a time."""


class Quiet(ThreadingHTTPServer):
    """Clients that go away are no news."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serve(speed: Speed) -> Iterator[str]:
    """The URL of the server, which ends with the block."""
    free = threading.Semaphore(speed.places)
    lock, busy, over = threading.Lock(), [0], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(speed.asked)
                speed.asked.append(body)
            fault = speed.fault(number)
            if fault == "http_500":
                self.send_error(500, "broken on purpose")
                return
            if fault == "hang":
                over.wait(30)
                return
            with free:
                with lock:
                    busy[0] += 1
                    speed.most = max(speed.most, busy[0])
                try:
                    self.answer(body, fault)
                except OSError:  # the client went away
                    self.close_connection = True
                finally:
                    with lock:
                        busy[0] -= 1

        def answer(self, body: dict[str, Any], fault: str | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            time.sleep(speed.prefill_s)
            for i in range(body["max_tokens"]):
                time.sleep(speed.token_s if i else 0)
                last = i == body["max_tokens"] - 1
                self.event({"choices": [{"text": " a", "finish_reason": "length" if last else None}]})
                if fault == "closed":
                    self.close_connection = True
                    self.connection.close()
                    return
            prompt = body["prompt"]
            usage = {"prompt_tokens": len(prompt), "completion_tokens": body["max_tokens"]}
            self.event({"choices": [], "usage": usage})
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")

        def event(self, content: dict[str, Any]) -> None:
            self.chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

        def chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
