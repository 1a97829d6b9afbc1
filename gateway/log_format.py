"""What a log line says: of a request, and of what any part of the program reports through `logging`.

Never a prompt, an answer, a secret or a text from upstream. An exception's own message may quote any of them,
so a failure is its type and where it came from; of other libraries' messages only the first line is taken. A
line is at most 4 KiB, so that a pipe takes it in one piece.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from errno import errorcode
from typing import Any

import msgspec

MOST_BYTES = 4096
MOST_FRAMES = 15
MOST_CAUSES = 4
MOST_CHARACTERS = 1000
FEW_CHARACTERS = 200
OWN = "gateway"
EXTRAS = ("event", "request_id")
"""What our own calls of `logging` may give in `extra`."""
_PROSE = re.compile(r"[^('\"<{=]*")


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request, as it ended."""

    ts: datetime
    level: str
    event: str
    request_id: str
    method: str
    route: str
    """Its pattern, not the path that came."""
    model: str
    status: int
    late_code: str | None = None
    """What went wrong after the status had gone."""
    duration_ms: float
    error_code: str | None = None
    """`code` of the error that the client got."""
    queue_ms: float | None = None
    best_of: int = 1
    scored: int | None = None
    degraded: str | None = None
    tokens: int = 0
    """The prompt's and all candidates'."""
    replica: str = ""
    """The policy's, where there were several all of them."""
    key: str | None = None
    """The API key's id."""
    trace_id: str | None = None
    """OpenTelemetry's, where the request was traced."""


Line = RequestLine | dict[str, Any]
_encode = msgspec.json.Encoder().encode


def as_json(line: Line) -> bytes:
    """One JSON object, in ASCII: a terminal or a viewer shows no line breaks, colours or reversed text that
    came from outside."""
    try:
        data = _encode(line)
    except UnicodeEncodeError:  # half of a surrogate pair
        data = b"\xff"
    if not data.isascii():
        data = json.dumps(_builtins(line), separators=(",", ":")).encode()
    return data + b"\n"


def as_text(line: Line) -> bytes:
    """For people at a terminal: time, level, message, and the rest as key=value."""
    fields = _builtins(line)
    clock, level, event = fields.pop("ts")[11:19], fields.pop("level"), fields.pop("event")
    places = fields.pop("traceback", [])
    words = [clock, f"{level:<8}", str(fields.pop("message", event))]
    words += [f"{name}={value}" for name, value in fields.items()]
    lines = [" ".join(words), *(f"    {place}" for place in places)]
    return "".join(f"{_visible(text)}\n" for text in lines).encode()


def of_record(record: logging.LogRecord) -> dict[str, Any]:
    """What was reported through `logging`."""
    line: dict[str, Any] = {
        "ts": datetime.fromtimestamp(record.created, UTC),
        "level": record.levelname.lower(),
        "event": "log",
        "logger": record.name,
        "message": _message(record)[:MOST_CHARACTERS],
    }
    line |= {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        line |= {"error": _name(error), "traceback": list(_places(error))}
    if len(as_json(line)) > MOST_BYTES:
        line["message"] = line["message"][:FEW_CHARACTERS]
        line.pop("traceback", None)
    return line


def level_of(status: int, late_code: str | None) -> int:
    """How bad a request's end is: 500 is a bug of ours, other 5xx are trouble, a client that left is not."""
    if status == 500 or late_code == "500":
        return logging.ERROR
    return logging.WARNING if status > 500 or late_code not in {None, "499"} else logging.INFO


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: half a message is better than none
        message = str(record.msg)
    if record.name == OWN or record.name.startswith(f"{OWN}."):
        return message
    first = message.partition("\n")[0]
    if record.name == "asyncio":  # prints representations of what a callback was called with
        first = _PROSE.match(first)[0].rstrip()  # type: ignore[index]  # it matches anything
    return first


def _places(error: BaseException) -> Iterator[str]:
    """Where it was raised, innermost last, then the same of what it came from."""
    for number, link in enumerate(_chain(error)):
        if number:
            yield f"from {_name(link)}"
        for frame, line in list(traceback.walk_tb(link.__traceback__))[-MOST_FRAMES:]:
            yield f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if link is None:
            return
        yield link
        if isinstance(link, BaseExceptionGroup):
            link = link.exceptions[0]
        else:
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _name(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, BaseExceptionGroup):
        return f"{name} of {', '.join(_name(part) for part in error.exceptions[:3])}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} {errorcode.get(error.errno, error.errno)}"
    return name


def _builtins(line: Line) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(line)
    return fields


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
