"""What a fake remembers of each call. Instants are seconds of the monotonic clock, which on Linux is the same
for every process of the machine; None is not yet, or never."""

import time

import msgspec

PROMPT_CHARACTERS = 80


def now() -> float:
    """Seconds of the monotonic clock."""
    return time.monotonic()


class Record(msgspec.Struct, kw_only=True):
    """One call."""

    path: str
    request_id: str
    """The header x-request-id."""
    prompt: str
    """The start of the last user message (or of the prompt): what tells a call's request where no header
    does."""
    began_at: float
    """The request had come whole."""
    first_at: float | None = None
    """The first byte of the answer is about to be handed to the socket."""
    candidates_at: float | None = None
    """The last candidate's end is about to be."""
    ended_at: float | None = None
    """The last byte has been."""
    aborted_at: float | None = None
    """The caller's connection was gone before that."""
    fault: str | None = None


class State(msgspec.Struct, kw_only=True):
    """A fake's counts since it started."""

    calls: int = 0
    open: int = 0
    aborted: int = 0
    faults: dict[str, int] = msgspec.field(default_factory=dict)


def prompt_of(messages: object, prompt: object) -> str:
    """The start of the last user message, or of the prompt."""
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return str(message.get("content"))[:PROMPT_CHARACTERS]
    return str(prompt or "")[:PROMPT_CHARACTERS]
