"""The bytes of a refusal."""

from gateway.errors import InvalidRequestError, OverloadedError
from gateway.http_refusal import refusal


def test_a_refusal_to_the_byte() -> None:
    error = InvalidRequestError("No.", code="invalid_http")
    body = b'{"error":{"message":"No.","type":"invalid_request_error","param":null,"code":"invalid_http"}}'
    assert refusal(error, [(b"host", b"a"), (b"x-request-id", b"mine")], [(b"date", b"today")]) == (
        b"HTTP/1.1 400 Bad Request\r\n"
        b"date: today\r\n"
        b"content-type: application/json\r\n"
        b"content-length: %d\r\n"
        b"x-request-id: mine\r\n"
        b"connection: close\r\n"
        b"\r\n"
        b"%b" % (len(body), body)
    )


def test_advice_on_retries_goes_along() -> None:
    assert b"\r\nretry-after: 1\r\n" in refusal(OverloadedError("Full."), [], [])


def test_an_id_that_would_break_the_head_is_replaced() -> None:
    for bad in (b"a\r\nx: y", b"\xe4", b"", b"x" * 129):
        head = refusal(InvalidRequestError("No."), [(b"x-request-id", bad)], []).partition(b"\r\n\r\n")[0]
        assert len(head.split(b"x-request-id: ")[1].split(b"\r\n")[0]) == 32
