"""How long a client will wait, as its request's headers say.

`x-request-deadline-ms` is a client's own word: whole milliseconds from now. `x-stainless-read-timeout` comes
by itself from OpenAI's Python client: the seconds of silence after which it gives up. An answer that comes
later is worth nothing to it, and costs as much as one in time. On a stream silence ends with each heartbeat
or chunk, so there that header says nothing about the whole.
"""

import re
from collections.abc import Mapping

from gateway.errors import InvalidRequestError

DEADLINE_HEADER = "x-request-deadline-ms"
READ_TIMEOUT_HEADER = "x-stainless-read-timeout"
RETRY_COUNT_HEADER = "x-stainless-retry-count"
MAX_DEADLINE_MS = 86_400_000
"""As for `alignment.deadline_ms`: a day."""
MARGIN = 0.1
MAX_MARGIN_S = 1.0
"""Of a client's read timeout is left for the way to it and back: a tenth, at most this."""

_DIGITS = re.compile(r"[0-9]{1,8}")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def client_deadline_s(headers: Mapping[str, str], *, stream: bool) -> float | None:
    """Seconds from now until the client's deadline, the nearest where there are two; None where it names
    none.

    Raises:
        InvalidRequestError: `x-request-deadline-ms` is no whole number of milliseconds up to a day.
    """
    named = [_own_deadline_s(headers.get(DEADLINE_HEADER))]
    if not stream:
        named.append(_read_timeout_s(headers.get(READ_TIMEOUT_HEADER)))
    return min((seconds for seconds in named if seconds is not None), default=None)


def is_retry(headers: Mapping[str, str]) -> bool:
    """Whether OpenAI's client sends this for the second time; anything unreadable is a first try."""
    count = headers.get(RETRY_COUNT_HEADER, "")
    return _DIGITS.fullmatch(count) is not None and int(count) > 0


def _own_deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    if not _DIGITS.fullmatch(value.strip()) or not 1 <= int(value) <= MAX_DEADLINE_MS:
        raise InvalidRequestError(
            f"The header {DEADLINE_HEADER} must be a whole number of milliseconds from 1 to"
            f" {MAX_DEADLINE_MS}.",
            param=DEADLINE_HEADER,
        )
    return int(value) / 1000


def _read_timeout_s(value: str | None) -> float | None:
    if value is None or not _SECONDS.fullmatch(value.strip()):
        return None
    seconds = float(value)
    if seconds == 0:
        return None
    return seconds - min(seconds * MARGIN, MAX_MARGIN_S)
