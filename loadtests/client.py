"""What counts as an answer: whole or streamed, of a policy or of a reward server."""

from types import TracebackType
from typing import Any, Self

import msgspec

from loadtests.errors import LoadTestError
from loadtests.http_client import HttpClient, Reply
from loadtests.open_loop import Answer

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, ValueError)


class Client:
    """Sends one kind of request after another to one server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = HttpClient(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def first_model(self) -> str:
        """The first model that the server lists. LoadTestError where there is no such server."""
        reply = await self._http.send("GET", "/v1/models")
        if reply.error is not None:
            raise LoadTestError(f"{self._url}: no server answers there ({reply.error})")
        try:
            return str(msgspec.json.decode(reply.body)["data"][0]["id"])
        except UNREADABLE as error:
            raise LoadTestError(f"{self._url}: its /v1/models lists no model") from error

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Send a body and read the whole answer, a stream where the body asks for one."""
        reply = await self._http.send("POST", path, msgspec.json.encode(body))
        return understand(reply, streamed=bool(body.get("stream")))


def understand(reply: Reply, *, streamed: bool) -> Answer:
    """What a reply says."""
    answer = Answer(status=reply.status, ended_at=reply.ended_at)
    if reply.status not in {0, 200}:
        answer.error = reply.error or f"status {reply.status}"
    elif streamed:
        _read_stream(reply, answer)
    elif reply.error is not None:
        answer.error = reply.error
    else:
        _read_whole(reply.body, answer)
    return answer


def _read_whole(raw: bytes, answer: Answer) -> None:
    """An answer that is not streamed: choices, or the reward server's scores."""
    try:
        body = msgspec.json.decode(raw)
        usage = body.get("usage") or {}
        answer.tokens = int(usage.get("completion_tokens") or usage.get("tokens") or 0)
        if not (body.get("choices") or body.get("scores")):
            answer.error = "empty answer"
    except UNREADABLE:
        answer.error = "no JSON"


def _read_stream(reply: Reply, answer: Answer) -> None:
    """Server-sent events. Without [DONE] a stream was cut, however it looks."""
    answer.error = reply.error if reply.error in {"no connection", "time-out"} else "stream cut"
    position = 0
    for line in reply.body.split(b"\n"):
        position += len(line) + 1
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.error = None
            return
        try:
            has_content = _take_event(msgspec.json.decode(data), answer)
        except UNREADABLE:
            answer.error = "event that cannot be read"
            return
        if has_content and answer.first_at is None:
            answer.first_at = reply.time_of(position - 1)
        if answer.error == "error event":
            return


def _take_event(event: Any, answer: Answer) -> bool:
    """Count one event; whether it brings content."""
    if "error" in event:
        answer.error = "error event"
        return False
    answer.tokens = int((event.get("usage") or {}).get("completion_tokens") or answer.tokens)
    choices = event["choices"]
    return any((choice.get("delta") or {}).get("content") or choice.get("text") for choice in choices)
