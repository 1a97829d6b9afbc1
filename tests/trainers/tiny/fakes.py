"""A gateway and a reward server in one thread of their own, which answer as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""(path, body) -> (status, body)."""


class FakeServer:
    """What was asked of it, and how many requests it ever had open at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.most_open = 0
        self._open = 0
        self._lock = threading.Lock()

    def enter(self, path: str, body: dict[str, Any]) -> None:
        """A request has arrived."""
        with self._lock:
            self.asked.append((path, body))
            self._open += 1
            self.most_open = max(self.most_open, self._open)

    def leave(self) -> None:
        """It was answered."""
        with self._lock:
            self._open -= 1


@contextmanager
def serving(answer: Answer) -> Iterator[FakeServer]:
    """A server on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fake.enter(self.path, body)
            status, content = answer(self.path, body)
            fake.leave()
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Keeps quiet of clients that went away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        fake = FakeServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def said(path: str, text: str) -> dict[str, Any]:
    """An answer of the gateway with this text."""
    choice = {"message": {"content": text}} if path.endswith("chat/completions") else {"text": text}
    return {"choices": [choice]}
