"""An error answer written without an application: what `HttpProtocol` says before it hangs up."""

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.errors import GatewayError
from gateway.middleware import request_id


def refusal(
    error: GatewayError,
    asked_with: Iterable[tuple[bytes, bytes]],
    default_headers: Iterable[tuple[bytes, bytes]],
) -> bytes:
    """The whole answer, which closes the connection: the envelope, and the x-request-id that the request
    brought or a new one.

    Args:
        asked_with: the request's headers as far as they came, names in lower case.
        default_headers: what every answer carries.
    """
    body = error.body()
    offered = next((value for name, value in asked_with if name == b"x-request-id"), None)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": request_id(None if offered is None else offered.decode("latin-1")),
        **error.headers(),
        "connection": "close",
    }
    lines = [name + b": " + value for name, value in default_headers]
    lines += [f"{name}: {value}".encode() for name, value in headers.items()]
    return STATUS_LINE[error.status] + b"\r\n".join([*lines, b"", body])
