"""Reads a request body strictly: what another reader might understand otherwise is refused, with 400.

NaN, infinities, lone surrogates, invalid UTF-8, byte order marks, keys given twice, unknown fields, wrong
types and bottomless nesting are all refused; the message names our own fields and types, never what was sent.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from rm_server.errors import InvalidRequestError

T = TypeVar("T", bound=msgspec.Struct)

# msgspec's messages end in the path of the fault; a dict's own keys appear in it as "[...]": it quotes
# nothing.
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_QUOTING = ("unknown field", "Invalid enum value")


class _DuplicateKeyError(ValueError):
    pass


def read_json(body: bytes, kind: type[T]) -> T:
    """`body` as a `kind`. Raises InvalidRequestError."""
    try:
        value = msgspec.json.decode(body, type=kind)
        json.loads(body, object_pairs_hook=_refuse_duplicates)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from error
    except _DuplicateKeyError as error:
        raise InvalidRequestError("The body has a key twice in one object", code="duplicate_key") from error
    except RecursionError as error:
        raise InvalidRequestError("The body is nested too deeply", code="invalid_json") from error
    except (
        msgspec.DecodeError,
        ValueError,
    ) as error:  # ValueError: an integer of thousands of digits
        raise InvalidRequestError("The body is not valid JSON in UTF-8", code="invalid_json") from error
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _DuplicateKeyError


def _wrong_shape(message: str) -> InvalidRequestError:
    found = _PATH.search(message)
    param = found.group(1) if found else None
    text = _PATH.sub("", message)
    if any(words in text for words in _QUOTING):
        text = "An unknown field or value; docs/reward-server.md lists what is known"
    return InvalidRequestError(text, param=param or None)
