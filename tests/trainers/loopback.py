"""A JSON server of a few lines on a loopback port."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Path and body ({} of a GET) to what is answered."""


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    """Answers every GET and POST with 200; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(answer(self.path, {}))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            self._say(answer(self.path, json.loads(content or b"{}")))

        def _say(self, said: dict[str, Any]) -> None:
            content = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
