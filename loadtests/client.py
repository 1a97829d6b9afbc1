"""The load generator's client: aiohttp, one session, no limit on connections."""

import json
from collections.abc import AsyncIterable
from types import TracebackType
from typing import Any, Self

import aiohttp

from loadtests.errors import LoadTestError
from loadtests.open_loop import Answer, now

TIMEOUT_S = 120.0


class Client:
    """Sends one kind of request after another to one server."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def first_model(self) -> str:
        """The first model that the server lists. LoadTestError where there is no such server."""
        try:
            async with self._session.get(f"{self._url}/v1/models") as answer:
                return str((await answer.json())["data"][0]["id"])
        except (aiohttp.ClientError, aiohttp.InvalidURL, TimeoutError) as error:
            raise LoadTestError(f"{self._url}: no server answers there ({type(error).__name__})") from error
        except (ValueError, LookupError, TypeError) as error:
            raise LoadTestError(f"{self._url}: its /v1/models lists no model") from error

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Send a body and read the whole answer, a stream where the body asks for one."""
        try:
            async with self._session.post(f"{self._url}{path}", json=body) as response:
                if response.status != 200:
                    await response.read()
                    return Answer(error=f"status {response.status}")
                if body.get("stream"):
                    return await read_stream(response.content)
                return read_whole(await response.read())
        except TimeoutError:
            return Answer(error="time-out")
        except aiohttp.ClientError as error:
            return Answer(error=type(error).__name__)


def read_whole(raw: bytes) -> Answer:
    """An answer that is not streamed: choices, or the reward server's scores."""
    try:
        body = json.loads(raw)
        usage = body.get("usage") or {}
        if not (body.get("choices") or body.get("scores")):
            return Answer(error="empty answer")
    except (ValueError, AttributeError):
        return Answer(error="no JSON")
    return Answer(tokens=int(usage.get("completion_tokens") or usage.get("tokens") or 0))


async def read_stream(lines: AsyncIterable[bytes]) -> Answer:
    """Server-sent events to their end. Without [DONE] a stream was cut, however it looks."""
    answer = Answer(error="stream cut")
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.error = None
            break
        if not _take_event(data, answer):
            return answer
    return answer


def _take_event(data: bytes, answer: Answer) -> bool:
    """Count one event; False where it ends the stream as an error."""
    try:
        event = json.loads(data)
        if "error" in event:
            answer.error = "error event"
            return False
        answer.tokens = int((event.get("usage") or {}).get("completion_tokens") or answer.tokens)
        texts = [
            (choice.get("delta") or {}).get("content") or choice.get("text") for choice in event["choices"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        answer.error = "event that cannot be read"
        return False
    if any(texts) and answer.first_at is None:
        answer.first_at = now()
    return True
