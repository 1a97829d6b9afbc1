"""How a request to the gateway ended, as its client sees it: the promise is that every one is answered, or
told that it failed."""

from typing import Literal

import msgspec

from loadtests.client import UNREADABLE, understand
from loadtests.http_client import Reply

Outcome = Literal["answered", "refused", "declared", "broken"]
ENVELOPE = {"message", "type", "param", "code"}


def outcome(reply: Reply, *, streamed: bool) -> Outcome:
    """answered: whole, a stream with its `[DONE]`. refused: a status with the error envelope. declared: a
    stream that had begun ends with an error event and without `[DONE]`. broken: anything else."""
    if reply.error is not None:
        return "broken"
    if reply.status != 200:
        return "refused" if _is_envelope(reply.body) else "broken"
    said = understand(reply, streamed=streamed).error
    if said is None:
        return "answered"
    return "declared" if said == "error event" and b"data: [DONE]" not in reply.body else "broken"


def _is_envelope(body: bytes) -> bool:
    try:
        value = msgspec.json.decode(body)
        return set(value) == {"error"} and set(value["error"]) == ENVELOPE
    except UNREADABLE:
        return False
