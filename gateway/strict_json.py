"""Read a JSON object as RFC 8259 means it: what Python's own reader lets through is refused.

NaN and Infinity, numbers beyond a float, lone surrogates, duplicate keys, nesting deeper than 64, encodings
other than UTF-8: each is a 400 that does not echo the input.
"""

import json
import re
from typing import Any, NoReturn

from gateway.errors import InvalidRequestError

MAX_DEPTH = 64
_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89abABcdefCDEF]")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        InvalidRequestError: not strict JSON, or not an object.
    """
    _check_depth(raw)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError:
        raise _invalid("The body is not valid UTF-8.") from None
    except InvalidRequestError:
        raise
    except (ValueError, RecursionError):
        raise _invalid("The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise _invalid("The body must be a JSON object.")
    if _SURROGATE_ESCAPE.search(raw):
        _check_surrogates(value)
    return value


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("The body has an object with a key given twice.")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise _invalid("NaN and Infinity are not JSON numbers.")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _invalid("The body has a number that is too large.")
    return value


def _check_depth(raw: bytes) -> None:
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(raw):
        first = raw[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _invalid(f"The body is nested deeper than {MAX_DEPTH} levels.")
        elif first in b"]}":
            depth -= 1


def _check_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("The body has half of a surrogate pair, which is no character.") from None
