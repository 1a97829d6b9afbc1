"""The policy as vLLM's OpenAI servers: one or more replicas that serve the same model.

A request goes to the replica with the least outstanding work. Until a first byte of the answer has come,
another replica may be asked, once, and within a budget. A refusal of the server's becomes one of our errors:
its text may hold prompts, paths or addresses and never passes.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgspec

from gateway import tracing
from gateway.attempts import ask, attempt
from gateway.config import PolicyConfig
from gateway.errors import (
    GatewayError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    SilentError,
    UpstreamError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gateway.fields import KNOWN_FIELDS
from gateway.health_watch import HealthWatch
from gateway.policy import Answer, Call, Chunk, Delta, Reply
from gateway.replicas import Observer, Replicas
from gateway.sse import EventSplitter, data_of, is_error
from gateway.upstream import UNREADABLE, HttpUpstream, reading

MAX_ERROR_BYTES = 64 * 1024
FINISH_S = 0.05
_CONTEXT = re.compile(
    r"context length|max_model_len|maximum model length|longer than the maximum", re.IGNORECASE
)
_CONTEXT_LIMIT = re.compile(r"(?:context length|max_model_len|model length)\D{0,20}(\d{1,9})", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}")
_WORD = re.compile(r"[a-z_]+")


class Ended(msgspec.Struct):
    """How a choice of a whole answer came to its end."""

    finish_reason: str | None = None


class Whole(msgspec.Struct):
    """What is read of a whole answer; reading it also proves that it is JSON."""

    choices: list[Ended] | None = None
    usage: dict[str, Any] | None = None

    @property
    def aborted(self) -> bool:
        """Whether the server gave up a choice, as vLLM does with what it is doing when it is told to leave:
        status 200, and no answer."""
        return any(choice.finish_reason == "abort" for choice in self.choices or ())


class VllmReply:
    """A stream of a vLLM server: its first bytes, and the rest as it comes."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes) -> None:
        self._response = response
        self._first = first

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""
        yield self._first
        with reading():
            async for data in self._response.content.iter_any():
                yield data

    async def finish(self) -> None:
        """See Reply. A server that keeps the body open gets its connection closed after 50 ms."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(FINISH_S):
                await self._response.content.readany()


class VllmServer:
    """One vLLM OpenAI server."""

    def __init__(self, config: PolicyConfig, url: str) -> None:
        self._url = url
        self._http = HttpUpstream(url, config.timeout_s, config.api_key)
        self._first_byte_timeout_s = config.first_byte_timeout_s
        self._model = config.model if config.model is not None else config.name
        self._decode_whole = msgspec.json.Decoder(Whole).decode

    async def fetch(self, call: Call) -> Answer:
        """Post, and wait for the whole answer."""
        body = msgspec.json.encode(call.body)
        with self._span(call) as span:
            headers = {"x-request-id": call.request_id, **span.headers()}
            answer = await self._http.fetch(call.path, body, headers)
            if answer.status != 200:
                raise translate_refusal(answer.status, answer.content, answer.headers.get("retry-after"))
            try:
                whole = self._decode_whole(answer.content)
            except UNREADABLE as error:
                raise UpstreamError("The policy server answered something that is not JSON.") from error
            if whole.aborted:
                raise UpstreamUnavailableError("The policy server stopped before it had answered.")
            return Answer(answer.content, whole.usage or {})

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[VllmReply]:
        """Post, and hand over the stream once its first bytes are there."""
        body = msgspec.json.encode(call.body)
        async with AsyncExitStack() as stack:
            span = stack.enter_context(self._span(call))
            headers = {"x-request-id": call.request_id, **span.headers()}
            async with self._first_byte_in_time():
                response = await stack.enter_async_context(self._http.post(call.path, body, headers))
                first = await _first_bytes(response)
            yield VllmReply(response, first)

    def _span(self, call: Call) -> tracing.Span:
        about: tracing.Attributes = {
            "gen_ai.provider.name": "vllm",
            "bonsai.candidates": call.work,
            "bonsai.sampled_again": call.again,
        }
        return tracing.call(self._url, call.path, call.body.get("model"), about)

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the models that it serves."""
        status, body = await self._http.get("/v1/models")
        return parse_models(status, body)

    async def healthy(self) -> bool:
        """Whether its engine lives and it serves the model that it is here for."""
        try:
            status, _ = await self._http.get("/health")
            if status != 200 or self._model is None:
                return status == 200
            return any(card["id"] == self._model for card in await self.models())
        except GatewayError:
            return False

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a short GET."""
        return await self._http.get(path)

    async def close(self) -> None:
        """Give connections back."""
        await self._http.close()

    @asynccontextmanager
    async def _first_byte_in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._first_byte_timeout_s):
                yield
        except TimeoutError:
            raise SilentError("The policy server did not begin to answer in time.") from None


class VllmPolicy:
    """The replicas of one policy."""

    def __init__(self, config: PolicyConfig, observer: Observer | None = None) -> None:
        servers = {url: VllmServer(config, url) for url in config.urls}
        self._clients = tuple(servers.values())
        self._replicas = Replicas(servers, observer=observer)
        self._watch = HealthWatch(self._replicas, VllmServer.healthy)
        self._decode_chunk = msgspec.json.Decoder(Chunk).decode

    async def fetch(self, call: Call) -> Answer:
        """See Policy."""
        return await ask(
            self._replicas,
            lambda server: server.fetch(call),
            work=call.work,
            affinity=call.affinity,
            asked=call.asked,
        )

    def open(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """See Policy."""
        return attempt(
            self._replicas,
            lambda server: server.open(call),
            work=call.work,
            affinity=call.affinity,
            again=call.again,
            asked=call.asked,
        )

    async def sample(self, call: Call) -> AsyncGenerator[list[Chunk], None]:
        """See Policy.

        Raises:
            UpstreamError: an error event, an event that is no chunk, or an end without `[DONE]`.
        """
        splitter = EventSplitter()
        async with self.open(call) as reply, aclosing(reply.chunks()) as arrivals:
            async for data in arrivals:
                events = [data_of(event) for event in splitter.feed(data)]
                chunks, error = self._chunks(events, call.work)
                yield chunks
                if error is not None:
                    raise error
                if b"[DONE]" in events:
                    await reply.finish()
                    return
            if not any(splitter.end()):
                raise UpstreamError("The policy server broke off in the middle of its answer.")

    def may_sample_again(self) -> bool:
        """See Policy."""
        return self._replicas.may_repeat()

    async def models(self) -> list[dict[str, Any]]:
        """See Policy. Of the first replica that answers."""
        return await ask(self._replicas, VllmServer.models, work=0)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a short GET, of the first replica that answers."""
        return await ask(self._replicas, lambda server: server.get(path), work=0)

    async def ready(self) -> bool:
        """See Policy. One healthy replica is enough."""
        answers = await asyncio.gather(*(server.healthy() for server in self._clients))
        return any(answers)

    async def start(self) -> None:
        """Watch the replicas' health."""
        self._watch.start()

    async def close(self) -> None:
        """See Policy."""
        await self._watch.stop()
        self._replicas.close()
        for server in self._clients:
            await server.close()

    def _chunks(self, events: list[bytes], num_choices: int) -> tuple[list[Chunk], UpstreamError | None]:
        """The chunks up to the first event that is none, and what is wrong with that one: what came before an
        error counts, however the network cut the stream."""
        chunks: list[Chunk] = []
        for event in events:
            if event and event != b"[DONE]":
                try:
                    chunks.append(self._chunk(event, num_choices))
                except UpstreamError as error:
                    return chunks, error
        return chunks, None

    def _chunk(self, event: bytes, num_choices: int) -> Chunk:
        if is_error(event):
            raise UpstreamFailedError("The policy server failed while it generated.")
        try:
            chunk = self._decode_chunk(event)
            for choice in chunk.choices:
                if choice.delta is not None:
                    msgspec.convert(choice.delta, Delta)
        except UNREADABLE as error:
            raise UpstreamError("The policy server sent an event that cannot be read.") from error
        if not all(0 <= choice.index < num_choices for choice in chunk.choices):
            raise UpstreamError("The policy server sent a candidate that was not asked for.")
        return chunk


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    with reading():
        if response.status != 200:
            text = await response.content.read(MAX_ERROR_BYTES)
            raise translate_refusal(response.status, text, response.headers.get("retry-after"))
        if response.content_type != "text/event-stream":
            raise UpstreamError("The policy server answered something that is no stream.")
        first = await response.content.readany()
    if not first:
        raise UpstreamError("The policy server ended its answer before it began.")
    return first


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
        seconds = int(retry_after) if retry_after and _SECONDS.fullmatch(retry_after) else 1
        return OverloadedError("The policy server is overloaded.", retry_after=min(max(seconds, 1), 60))
    if status in {401, 403}:
        return UpstreamError("The policy server does not accept the gateway.", code="upstream_auth")
    if status == 501:
        return InvalidRequestError("The policy server does not support this request.", code="unsupported")
    return UpstreamFailedError("The policy server failed.")


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
