"""What Python's JSON reader lets through is refused."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.strict_json import MAX_DEPTH, parse_object

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.booleans())
def test_strict_json_reads_back_as_it_was(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert isinstance(parse_object(raw), dict)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": -1e400}',
        b'{"a": "\\ud800"}',
        b'{"a": {"\\udfff": 1}}',
        b'{"a": 1, "a": 2}',
        b'{"b": [{"a": 1, "a": 1}]}',
        b'{"a": "\xff"}',
        '{"a": "é"}'.encode("utf-16"),
        '{"a": "é"}'.encode("latin-1"),
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": 1} x',
        b'{"a": 01}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' * 65 + b"1" + b"}" * 65,
    ],
)
def test_what_is_not_strict_json_is_refused_without_echo(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_object(raw)
    assert caught.value.code == "invalid_json"
    assert len(caught.value.body()) < 300


def test_surrogate_pairs_and_deep_but_legal_nesting_are_read() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    raw = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert json.dumps(parse_object(raw)).count("[") == MAX_DEPTH - 1


def test_brackets_inside_strings_are_no_nesting() -> None:
    text = "[{" * 500 + '\\"' + "[" * 100
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


@given(values | st.integers(-(10**4299), 10**4299))
def test_what_is_let_through_can_be_sent_on(value: object) -> None:
    body = {"x": value}
    with contextlib.suppress(InvalidRequestError):
        body = parse_object(json.dumps(body).encode())
        assert json.loads(msgspec.json.encode(body)) == body
