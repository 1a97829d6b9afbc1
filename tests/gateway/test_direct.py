"""Who goes straight to its handler, and who the usual way."""

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.direct import Direct
from gateway.errors import GatewayError, InvalidRequestError


async def usual(scope: Scope, receive: Receive, send: Send) -> None:
    """The framework."""
    await Response(f"usual {scope['type']}")(scope, receive, send)


async def handle(request: Request) -> Response:
    """One of the handlers."""
    if request.url.query == "bad":
        raise InvalidRequestError("no")
    if request.url.query == "bug":
        raise ZeroDivisionError
    return Response(await request.body())


async def answer_error(request: Request, error: GatewayError) -> Response:
    """As the application answers errors."""
    return Response(f"error at {request.url.path}", error.status)


async def ask(path: str, method: str = "POST", query: bytes = b"") -> tuple[int, bytes]:
    """Status and body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"direct", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "path": path, "method": method, "headers": []}
    scope |= {"query_string": query, "server": ("gateway", 80), "scheme": "http"}
    await Direct(usual, {"/direct": handle}, answer_error)(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/direct", b"direct"),
        ("GET", "/direct", b"usual http"),
        ("OPTIONS", "/direct", b"usual http"),
        ("POST", "/direct/", b"usual http"),
        ("POST", "/", b"usual http"),
    ],
)
async def test_posts_to_its_paths_go_straight(method: str, path: str, body: bytes) -> None:
    assert await ask(path, method) == (200, body)


async def test_what_is_no_request_goes_the_usual_way() -> None:
    sent: list[Scope] = []

    async def remember(scope: Scope, receive: Receive, send: Send) -> None:
        sent.append(scope)

    async def nothing(*_: object) -> Any:
        raise AssertionError

    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": "/direct"}):
        await Direct(remember, {"/direct": handle}, answer_error)(scope, nothing, nothing)
    assert [scope["type"] for scope in sent] == ["lifespan", "websocket"]


async def test_an_error_is_answered_and_a_bug_is_not_hidden() -> None:
    assert await ask("/direct", query=b"bad") == (400, b"error at /direct")
    with pytest.raises(ZeroDivisionError):
        await ask("/direct", query=b"bug")
