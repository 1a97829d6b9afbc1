"""What another JSON reader might understand otherwise is refused, and never repeated."""

from __future__ import annotations

import pytest

from rm_server.errors import InvalidRequestError, error_body
from rm_server.protocol import ScoreRequest
from rm_server.strict_json import read_json

USER = '{"role": "user", "content": "q"}'


def test_reads_what_is_well_formed() -> None:
    request = read_json(b'{"messages": [%s], "responses": ["\\ud83d\\ude00"]}' % USER.encode(), ScoreRequest)
    assert request.responses == ["\U0001f600"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),  # a byte order mark
        ("{}".encode("utf-16"), "invalid_json"),
        (b'{"responses": ["\xff"]}', "invalid_json"),
        (b'{"responses": ["\\ud800"]}', "invalid_json"),
        (b'{"responses": ["\\udc00 tail of some length"]}', "invalid_json"),
        (b'{"objectives": {"a": NaN}}', "invalid_json"),
        (b'{"objectives": {"a": -Infinity}}', "invalid_json"),
        (b'{"objectives": {"a": 1e400}}', None),
        (b'{"model": "a", "model": "a"}', "duplicate_key"),
        (b'{"objectives": {"a": 1, "a": 2}}', "duplicate_key"),
        (b'{"bogus": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b"[" * 100_000, None),
        (b'{"bogus": 1}', None),
        (b'{"return_members": 1}', None),
        (b'{"responses": "one"}', None),
        (b'{"responses": [1]}', None),
        (b'{"messages": [{"role": "bogus", "content": "q"}]}', None),
        (b'{"messages": [{"role": "user", "content": null}]}', None),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}', None),
        (b'{"messages": [{"role": "user", "content": "q", "bogus": 1}]}', None),
        (b'{"ensemble": "bogus"}', None),
        (b"[]", None),
        (b"null", None),
    ],
)
def test_refuses(body: bytes, code: str | None) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_json(body, ScoreRequest)
    assert refused.value.code == code
    assert b"bogus" not in error_body(refused.value)


def test_bottomless_nesting_is_refused_where_anything_may_stand() -> None:
    # `GetRewardRequest` takes unknown fields, so its reader must walk through them.
    from rm_server.compatible import GetRewardRequest

    body = b'{"query": "x", "labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(InvalidRequestError) as refused:
        read_json(body, GetRewardRequest)
    assert refused.value.code == "invalid_json"


def test_names_the_field() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_json(b'{"messages": [%s, {"role": "user", "content": 5}]}' % USER.encode(), ScoreRequest)
    assert refused.value.param == "messages[1].content"
    assert refused.value.message == "Expected `str | array`, got `int`"
