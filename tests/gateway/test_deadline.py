"""Deadlines from the client's own headers, on both sides of what is taken."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai._models import FinalRequestOptions

from gateway.deadline import client_deadline_s, is_retry
from gateway.errors import InvalidRequestError


def own(value: str) -> dict[str, str]:
    """The client's own word."""
    return {"x-request-deadline-ms": value}


def silence(value: str) -> dict[str, str]:
    """OpenAI's header."""
    return {"x-stainless-read-timeout": value}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("value", "seconds"), [("1", 0.001), (" 1500 ", 1.5), ("86400000", 86_400.0)])
def test_a_deadline_in_milliseconds(value: str, seconds: float, stream: bool) -> None:
    assert client_deadline_s(own(value), stream=stream) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "-1",
        "86400001",
        "1.5",
        "1e3",
        "+5",
        "0x10",
        "soon",
        "١٢",
        "1_000",
        "9" * 10_000,
        "1 2",
        "nan",
    ],
)
def test_a_deadline_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        client_deadline_s(own(value), stream=False)
    assert (error.value.status, error.value.param) == (400, "x-request-deadline-ms")
    assert str(error.value).endswith("a whole number of milliseconds from 1 to 86400000."), "and no echo"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("600", 599.0), ("600.0", 599.0), ("10", 9.0), ("9", 8.1), ("0.5", 0.45), ("11", 10.0)],
)
def test_a_read_timeout_less_its_margin(value: str, seconds: float) -> None:
    assert client_deadline_s(silence(value), stream=False) == pytest.approx(seconds)
    assert client_deadline_s(silence(value), stream=True) is None


@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "-5", "nan", "inf", "None", "1e9", "9" * 10_000, "Timeout(1)"]
)
def test_a_read_timeout_that_cannot_be_read_is_ignored(value: str) -> None:
    assert client_deadline_s(silence(value), stream=False) is None


def test_the_nearest_deadline_counts() -> None:
    assert client_deadline_s({}, stream=False) is None
    assert client_deadline_s(own("2000") | silence("10"), stream=False) == 2.0
    assert client_deadline_s(own("20000") | silence("10"), stream=False) == 9.0
    assert client_deadline_s(own("20000") | silence("10"), stream=True) == 20.0


@given(st.text(), st.booleans())
def test_no_header_is_a_bug_of_ours(value: str, stream: bool) -> None:
    assert client_deadline_s(silence(value), stream=stream) is None or not stream
    with contextlib.suppress(InvalidRequestError):
        assert client_deadline_s(own(value), stream=stream) is not None
    assert is_retry({"x-stainless-retry-count": value}) in {True, False}


@pytest.mark.parametrize(
    ("value", "expected"), [("0", False), ("1", True), ("2", True), ("-1", False), ("x", False), ("", False)]
)
def test_retries_are_told_from_first_tries(value: str, expected: bool) -> None:
    assert is_retry({"x-stainless-retry-count": value}) is expected
    assert is_retry({}) is False


@pytest.mark.parametrize(("retries", "expected"), [(0, False), (1, True)])
def test_these_are_the_headers_that_openais_client_sends(retries: int, expected: bool) -> None:
    client = OpenAI(api_key="unused", base_url="http://127.0.0.1:1", timeout=10)
    options = FinalRequestOptions.construct(method="post", url="/chat/completions", json_data={})
    headers = client._build_request(options, retries_taken=retries).headers
    assert client_deadline_s(headers, stream=False) == 9.0
    assert is_retry(headers) is expected
