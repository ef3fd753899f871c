"""A server of OpenAI's completions API that does one thing wrong, to see what is made of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class FaultServer(ThreadingHTTPServer):
    """Answers with letters, a token each; `fault` says what is wrong with it.

    Attributes:
        fault: none, slow, hang, http_500, closed, wrong_usage, wrong_prompt, bad_json, no_stream, no_usage,
            pairs (two tokens an event), early, text_only, unauthorized, cached.
        count: tokens of a text, for text_only.
        seen: bodies of the requests that came.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fault: str = "none", model: str = "m") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.model = fault, model
        self.count: Callable[[str], int] = len
        self.seen: list[dict[str, Any]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextlib.contextmanager
def serving(fault: str = "none", model: str = "m") -> Iterator[FaultServer]:
    server = FaultServer(fault, model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self.server.fault == "unauthorized":
            self._json(401, {"error": f"bad key {self.headers.get('Authorization')}"})
        elif self.path == "/v1/models":
            self._json(200, {"data": [{"id": self.server.model, "owned_by": "faults"}]})
        elif self.path == "/version":
            self._json(200, {"version": "1.0"})
        else:
            self._json(404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(asked)
        fault = self.server.fault
        if fault == "hang":
            self.server.over.wait(20)
        elif fault == "http_500":
            self._json(500, {"error": "CUDA out of memory"})
        elif fault == "unauthorized":
            self._json(401, {"error": f"bad key {self.headers.get('Authorization')}"})
        elif fault == "text_only" and not isinstance(asked["prompt"], str):
            self._json(400, {"error": "prompt: a string"})
        elif fault == "no_stream" or not asked.get("stream"):
            self._json(200, {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        else:
            self._stream(asked, fault)

    def _stream(self, asked: dict[str, Any], fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        tokens = asked["max_tokens"] // 2 if fault == "early" else asked["max_tokens"]
        text = "".join(LETTERS[i % 26] for i in range(tokens))
        size = 2 if fault == "pairs" else 1
        for start in range(0, tokens, size):
            if fault == "slow":
                time.sleep(0.05)
            last = start + size >= tokens
            self._event({"choices": [{"text": text[start : start + size], "finish_reason": "stop" if last else None}]})
            if start == 2 and fault in ("closed", "bad_json"):
                if fault == "bad_json":
                    self.wfile.write(b'data: {"choices": [{"text": \n\n')
                return
        prompt = asked["prompt"]
        read = self.server.count(prompt) if isinstance(prompt, str) else len(prompt)
        usage: dict[str, Any] = {
            "prompt_tokens": 3 * read if fault == "wrong_prompt" else read,
            "completion_tokens": 7 * tokens if fault == "wrong_usage" else tokens,
            "prompt_tokens_details": {"cached_tokens": read if fault == "cached" else 0},
        }
        if fault != "no_usage":
            self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
