"""What counts as an answer: whole or streamed, of a policy or of a reward server."""

import asyncio
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import msgspec

from loadtests.alignment import Alignment
from loadtests.errors import LoadTestError
from loadtests.http_client import TIMEOUT_S, HttpClient, Reply
from loadtests.open_loop import Answer

REACH_S = 10.0
"""How long a server may take for a first sign of life."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, ValueError)


class Client:
    """Sends one kind of request after another to one server."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._http = HttpClient(url, timeout_s)
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def first_model(self) -> str:
        """The first model that the server lists. LoadTestError where there is no such server."""
        try:
            return str(msgspec.json.decode(await self.reach())["data"][0]["id"])
        except UNREADABLE as error:
            raise LoadTestError(f"{self._url}: its /v1/models lists no model; name one") from error

    async def reach(self) -> bytes:
        """What /v1/models says, whatever it is. LoadTestError where no server answers, or not to this key."""
        try:
            async with asyncio.timeout(REACH_S):
                reply = await self._http.send("GET", "/v1/models", headers=self._headers)
        except TimeoutError:
            reply = Reply(error="time-out")
        if reply.error is not None:
            raise LoadTestError(f"{self._url}: no server answers there ({reply.error})")
        if reply.status in {401, 403}:
            raise LoadTestError(f"{self._url}: the server wants another API key (status {reply.status})")
        return reply.body

    async def metrics(self) -> Reply:
        """The server's /metrics, or what came instead."""
        return await self._http.send("GET", "/metrics", headers=self._headers)

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Send a body and read the whole answer, a stream where the body asks for one."""
        return await self.post(path, msgspec.json.encode(body), streamed=bool(body.get("stream")))

    async def post(self, path: str, body: bytes, *, streamed: bool) -> Answer:
        """The same with a body that is JSON already."""
        reply = await self._http.send("POST", path, body, self._headers)
        return understand(reply, streamed=streamed)


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
        answer.scores = [float(score) for score in body.get("scores") or ()]
        choices = body.get("choices")
        if not (choices or answer.scores):
            answer.error = "empty answer"
        elif choices:
            answer.text = choices[0].get("text") or (choices[0].get("message") or {}).get("content") or ""
            _take_alignment(body, answer)
    except UNREADABLE:
        answer.error = "no JSON"


def _take_alignment(body: dict[str, Any], answer: Answer) -> None:
    if isinstance(body.get("alignment"), dict):
        answer.alignment = msgspec.convert(body["alignment"], Alignment)


def _read_stream(reply: Reply, answer: Answer) -> None:
    """Server-sent events. Without [DONE] a stream was cut, however it looks."""
    answer.error = reply.error if reply.error in {"no connection", "time-out"} else "stream cut"
    position, with_content, texts = 0, list[int](), list[str]()
    for line in reply.body.split(b"\n"):
        position += len(line) + 1
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.error = None
            break
        try:
            text = _take_event(msgspec.json.decode(data), answer)
        except UNREADABLE:
            answer.error = "event that cannot be read"
            break
        if text:
            with_content.append(position - 1)
            texts.append(text)
        if answer.error == "error event":
            break
    times = reply.times_of(with_content)
    answer.text = "".join(texts)
    answer.first_at = times[0] if times else None
    answer.gaps_s = [after - before for before, after in pairwise(times)]


def _take_event(event: Any, answer: Answer) -> str:
    """Count one event; what it says."""
    if "error" in event:
        answer.error = "error event"
        return ""
    answer.tokens = int((event.get("usage") or {}).get("completion_tokens") or answer.tokens)
    _take_alignment(event, answer)
    said = [(choice.get("delta") or {}).get("content") or choice.get("text") for choice in event["choices"]]
    return "".join(text for text in said if text)
