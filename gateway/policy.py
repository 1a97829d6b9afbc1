"""The seam to the server that samples.

`Policy` is what the rest of the gateway knows; `VllmPolicy` speaks to vLLM's OpenAI server. A refusal of the
policy's becomes one of our errors: its text may hold prompts, paths or addresses and never passes.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Annotated, Any, Protocol

import aiohttp
import msgspec

from gateway.config import PolicyConfig
from gateway.errors import GatewayError, InvalidRequestError, NotFoundError, OverloadedError, UpstreamError
from gateway.fields import KNOWN_FIELDS
from gateway.sse import EventSplitter, data_of, is_error
from gateway.upstream import MAX_TOKENS, UNREADABLE, HttpUpstream, reading

MAX_ERROR_BYTES = 64 * 1024
FINISH_S = 0.05
_CONTEXT = re.compile(
    r"context length|max_model_len|maximum model length|longer than the maximum", re.IGNORECASE
)
_CONTEXT_LIMIT = re.compile(r"(?:context length|max_model_len|model length)\D{0,20}(\d{1,9})", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]+")


Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class Usage(msgspec.Struct):
    """Token counts as the policy reports them; in chunks of a sampling stream, of one candidate so far."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens | None = None
    prompt_tokens_details: dict[str, Any] | None = None


class FunctionPiece(msgspec.Struct):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(msgspec.Struct):
    """A piece of the tool call `index`."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionPiece | None = None


class Delta(msgspec.Struct):
    """What the gateway reads of a chat delta; the rest of it passes as it came."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChoiceDelta(msgspec.Struct):
    """A piece of one candidate: `delta` in a chat, `text` in a completion."""

    index: int
    delta: dict[str, Any] | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """One event of a sampling stream."""

    choices: list[ChoiceDelta]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class Reply(Protocol):
    """An open successful answer of the policy's."""

    @property
    def content_type(self) -> str:
        """As the policy sent it."""

    async def read(self) -> bytes:
        """The whole body."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""

    async def finish(self) -> None:
        """After the last event: let the connection end by itself, so that it can be used again."""


class Policy(Protocol):
    """A server that samples. Leaving `open` or closing `sample` early aborts the work upstream."""

    def open(self, path: str, body: dict[str, Any], request_id: str) -> AbstractAsyncContextManager[Reply]:
        """Post, and hand over the open answer; raises GatewayError where it is none."""

    def sample(self, path: str, body: dict[str, Any], request_id: str) -> AsyncGenerator[list[Chunk], None]:
        """Chunks of `body["n"]` candidates per prompt, those that arrived together in one list."""

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the served models."""

    async def ready(self) -> bool:
        """Whether it can take requests."""

    async def close(self) -> None:
        """Give connections back."""


class VllmReply:
    """The open answer of a vLLM server."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def content_type(self) -> str:
        """As the policy sent it."""
        return self._response.headers.get("content-type", "application/json")

    async def read(self) -> bytes:
        """The whole body."""
        with reading():
            return await self._response.read()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""
        with reading():
            async for data in self._response.content.iter_any():
                yield data

    async def finish(self) -> None:
        """See Reply. A server that keeps the body open gets its connection closed after 50 ms."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(FINISH_S):
                await self._response.content.readany()


class VllmPolicy:
    """A vLLM OpenAI server."""

    def __init__(self, config: PolicyConfig) -> None:
        self._http = HttpUpstream(config.url, config.timeout_s)
        self._decode_chunk = msgspec.json.Decoder(Chunk).decode

    @asynccontextmanager
    async def open(self, path: str, body: dict[str, Any], request_id: str) -> AsyncIterator[VllmReply]:
        """See Policy."""
        async with self._http.post(path, msgspec.json.encode(body), {"x-request-id": request_id}) as response:
            if response.status != 200:
                with reading():
                    text = await response.content.read(MAX_ERROR_BYTES)
                raise translate_refusal(response.status, text, response.headers.get("retry-after"))
            yield VllmReply(response)

    async def sample(
        self, path: str, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[list[Chunk], None]:
        """See Policy.

        Raises:
            UpstreamError: an error event, an event that is no chunk, or an end without `[DONE]`.
        """
        splitter = EventSplitter()
        async with self.open(path, body, request_id) as reply, aclosing(reply.chunks()) as arrivals:
            async for data in arrivals:
                events = [data_of(event) for event in splitter.feed(data)]
                chunks, error = self._chunks(events)
                yield chunks
                if error is not None:
                    raise error
                if b"[DONE]" in events:
                    await reply.finish()
                    return
        if not any(splitter.end()):
            raise UpstreamError("The policy server broke off in the middle of its answer.")

    async def models(self) -> list[dict[str, Any]]:
        """See Policy."""
        status, body = await self._http.get("/v1/models")
        return parse_models(status, body)

    async def ready(self) -> bool:
        """See Policy."""
        try:
            status, _ = await self._http.get("/health")
        except GatewayError:
            return False
        return status == 200

    async def close(self) -> None:
        """See Policy."""
        await self._http.close()

    def _chunks(self, events: list[bytes]) -> tuple[list[Chunk], UpstreamError | None]:
        """The chunks up to the first event that is none, and what is wrong with that one: what came before an
        error counts, however the network cut the stream."""
        chunks: list[Chunk] = []
        for event in events:
            if event and event != b"[DONE]":
                try:
                    chunks.append(self._chunk(event))
                except UpstreamError as error:
                    return chunks, error
        return chunks, None

    def _chunk(self, event: bytes) -> Chunk:
        if is_error(event):
            raise UpstreamError("The policy server failed while it generated.")
        try:
            chunk = self._decode_chunk(event)
            for choice in chunk.choices:
                if choice.delta is not None:
                    msgspec.convert(choice.delta, Delta)
        except UNREADABLE as error:
            raise UpstreamError("The policy server sent an event that cannot be read.") from error
        return chunk


def parse_models(status: int, body: bytes) -> list[dict[str, Any]]:
    """The cards in an answer to GET /v1/models.

    Raises:
        UpstreamError: not such an answer.
    """
    try:
        cards = msgspec.json.decode(body)["data"] if status == 200 else None
        if isinstance(cards, list) and all(isinstance(card["id"], str) for card in cards):
            return cards
    except (*UNREADABLE, KeyError, TypeError):
        pass
    raise UpstreamError("A server behind the gateway does not list its models as OpenAI's API does.")


def translate_refusal(status: int, body: bytes, retry_after: str | None) -> GatewayError:
    """Our error for a refusal of the policy's. Only numbers and names known beforehand are taken from its
    text."""
    text = body.decode("utf-8", "replace")
    if status in {400, 413, 422}:
        return _translate_invalid(text)
    if status == 404:
        return NotFoundError(
            "The policy server does not serve this model.", param="model", code="model_not_found"
        )
    if status in {429, 503}:
        seconds = int(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 1
        return OverloadedError("The policy server is overloaded.", retry_after=min(max(seconds, 1), 60))
    if status in {401, 403}:
        return UpstreamError("The policy server does not accept the gateway.", code="upstream_auth")
    if status == 501:
        return InvalidRequestError("The policy server does not support this request.", code="unsupported")
    return UpstreamError("The policy server failed.")


def _translate_invalid(text: str) -> InvalidRequestError:
    if _CONTEXT.search(text):
        limit = _CONTEXT_LIMIT.search(text)
        tokens = f" of {limit[1]} tokens" if limit else ""
        return InvalidRequestError(
            f"The prompt and the tokens asked for exceed the model's context length{tokens}.",
            code="context_length_exceeded",
        )
    if "tool-call-parser" in text or "enable-auto-tool-choice" in text:
        return InvalidRequestError("The policy server was started without tool calling.", param="tools")
    named = next((word for word in _WORD.findall(text) if "_" in word and word in KNOWN_FIELDS), None)
    about = f" because of `{named}`" if named else ""
    return InvalidRequestError(f"The policy server refused the request{about}.", param=named)
