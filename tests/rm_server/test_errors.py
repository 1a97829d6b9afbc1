"""The one error body, and what each kind of error answers."""

from __future__ import annotations

import msgspec

from rm_server.errors import InvalidRequestError, QueueFullError, RmServerError, error_body


def test_the_body_has_four_fields_and_no_more() -> None:
    body = msgspec.json.decode(error_body(InvalidRequestError("m", param="p", code="c")))
    assert body == {"error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": "c"}}


def test_the_body_stays_below_4_kib() -> None:
    assert len(error_body(RmServerError("\N{SNOWMAN}" * 10_000))) <= 4096


def test_retry_after_is_a_whole_number() -> None:
    assert QueueFullError(retry_after=3).headers == {"retry-after": "3"}
    assert InvalidRequestError("m").headers == {}
