"""A vLLM server without an engine: the same chat completion after a fixed delay, at next to no cost.

    python -m loadtests.fake_upstream --port 8100 --delay-ms 20

A bare asyncio protocol, because a web framework here would be measured instead of the gateway. It reads just
enough HTTP/1.1 for a client that keeps its connections and sends Content-Length, as a gateway does.
"""

import argparse
import asyncio
import json
import re
from typing import cast

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TEXT = "The river runs past the stone, and the lamp is lit. " * 6
COMPLETION = {
    "id": "chatcmpl-fake",
    "object": "chat.completion",
    "created": 1,
    "model": "fake",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 300, "completion_tokens": 72, "total_tokens": 372},
}
MODELS = {
    "object": "list",
    "data": [{"id": "fake", "object": "model", "created": 1, "owned_by": "loadtests"}],
}


def http(content: object) -> bytes:
    """A 200 with this JSON."""
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class FakeUpstream(asyncio.Protocol):
    """One connection: a GET is answered at once, a POST after the delay."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := self._take_request()) is not None:
            self._answer(request)

    def _take_request(self) -> bytes | None:
        """The head of the next whole request, which leaves the buffer."""
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        length = int(found.group(1)) if found else 0
        if not blank or len(rest) < length:
            return None
        self._buffer = rest[length:]
        return head

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"POST "):
            asyncio.get_running_loop().call_later(self._delay_s, self._write, COMPLETION_BYTES)
        else:
            self._write(MODELS_BYTES if head.startswith(b"GET /v1/models") else HEALTHY_BYTES)

    def _write(self, content: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(content)


COMPLETION_BYTES, MODELS_BYTES, HEALTHY_BYTES = http(COMPLETION), http(MODELS), http({})


async def serve(port: int, delay_s: float) -> None:
    """Listen on loopback until cancelled."""
    server = await asyncio.get_running_loop().create_server(lambda: FakeUpstream(delay_s), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A vLLM server without an engine.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    args = parser.parse_args()
    uvloop.run(serve(args.port, args.delay_ms / 1000))
