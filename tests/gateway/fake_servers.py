"""What is behind the gateway, as real loopback servers that tests script.

What each candidate says, when it ends, where a connection breaks; they count what is open and what was
aborted.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

MODEL = "tiny"
REWARD_MODEL = "judge"


@dataclass
class Sample:
    """What one candidate will say."""

    text: str
    finish_reason: str | None = "stop"
    tokens: int = 3
    delta: Mapping[str, Any] | None = None
    """Instead of text: tool calls, reasoning, a refusal."""
    logprobs: Mapping[str, Any] | None = None
    gate: asyncio.Event | None = None
    """It ends only once this is set."""


@dataclass
class Recorded:
    """A request that a fake got."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


def default_samples(count: int) -> list[Sample]:
    """Texts of growing length: "a", "aa", ... so that the default reward, the length, prefers the last."""
    return [Sample("a" * (index + 1)) for index in range(count)]


def length_reward(response: str) -> float:
    """The fakes' reward unless told otherwise."""
    return float(len(response))


class LoopbackServer:
    """An aiohttp server on a free port that counts open and aborted requests."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.open = 0
        self.aborted = 0
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    def routes(self) -> list[web.RouteDef]:
        """What it serves."""
        raise NotImplementedError

    async def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        app = web.Application(middlewares=[self._watch], client_max_size=2**25)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def wait_idle(self) -> None:
        """Until no request is open."""
        while self.open:
            self.idle.clear()
            await asyncio.wait_for(self.idle.wait(), 10)

    @web.middleware
    async def _watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.open += 1
        try:
            if request.method == "POST":
                raw = await request.read()
                self.requests.append(Recorded(request.path, dict(request.headers), json.loads(raw)))
                self.arrived.set()
            answer: web.StreamResponse = await handler(request)
            return answer
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.open -= 1
            self.idle.set()


class FakeVllm(LoopbackServer):
    """A vLLM OpenAI server without an engine."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[Sample] | None = None
        self.refusal: tuple[int, Any, dict[str, str]] | None = None
        """Status, body, headers of every answer to a POST."""
        self.raw_body: bytes | None = None
        self.raw_stream: list[bytes] | None = None
        """These bytes instead of a stream, piece by piece."""
        self.break_after: int | None = None
        """Events after which the connection is cut."""
        self.error_event_after: int | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        """Unset: no byte of any answer before it is set."""
        self.detokenize_hold = asyncio.Event()
        self.detokenize_hold.set()
        self.detokenized: Any = None
        """The answer to every /detokenize, instead of the tokens' characters."""
        self.healthy = True
        self.models = [MODEL]
        self.roles = {"system", "user", "assistant", "tool"}
        """That its chat template knows."""
        self.tokenizes = True
        self.tokenizer_info: dict[str, Any] | None = None

    def routes(self) -> list[web.RouteDef]:
        """See LoopbackServer."""
        return [
            web.post("/v1/chat/completions", self._generate),
            web.post("/v1/completions", self._generate),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.get("/tokenizer_info", self._tell_tokenizer),
            web.get("/v1/models", self._list_models),
            web.get("/health", self._health),
        ]

    async def _tell_tokenizer(self, _: web.Request) -> web.Response:
        return web.json_response(self.tokenizer_info, status=200 if self.tokenizer_info else 404)

    async def _list_models(self, _: web.Request) -> web.Response:
        cards = [{"id": name, "object": "model", "created": 1, "owned_by": "vllm"} for name in self.models]
        return web.json_response({"object": "list", "data": cards})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            return web.json_response({"error": {"message": "no such path"}}, status=404)
        body = await request.json()
        if any(message["role"] not in self.roles for message in body.get("messages", ())):
            return web.json_response({"error": {"message": "no such role"}}, status=400)
        text = body.get("prompt") or "".join(message["content"] for message in body["messages"])
        return web.json_response({"count": len(text), "max_model_len": 512, "tokens": [ord(c) for c in text]})

    async def _detokenize(self, request: web.Request) -> web.Response:
        await self.detokenize_hold.wait()
        if self.detokenized is not None:
            return web.json_response(self.detokenized)
        return web.json_response({"prompt": "".join(chr(t) for t in (await request.json())["tokens"])})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        await self.hold.wait()
        body = self.requests[-1].body if len(self.requests) == 1 else json.loads(await request.read())
        if self.refusal is not None:
            status, content, headers = self.refusal
            return web.json_response(content, status=status, headers=headers)
        if self.raw_body is not None:
            return web.Response(body=self.raw_body, content_type="application/json")
        if body.get("stream"):
            return await self._stream(request, body)
        return web.json_response(whole_answer(request.path, body, self.samples_for(body)))

    def samples_for(self, body: dict[str, Any]) -> list[Sample]:
        """What the candidates of a request will say: per prompt, n of them."""
        prompts = body.get("prompt")
        count = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
        total = count * (body.get("n") or 1)
        return (self.samples or default_samples(total))[:total]

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        sent = 0
        async for event in self._events(request.path, body):
            if sent == self.error_event_after:
                await response.write(b'data: {"error": {"message": "secret /srv/engine", "code": 500}}\n\n')
                await response.write(b"data: [DONE]\n\n")
                return response
            if sent == self.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(event)
            sent += 1
        return response

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        if self.raw_stream is not None:
            for piece in self.raw_stream:
                yield piece
            return
        samples = self.samples_for(body)
        for chunk in opening_chunks(path, samples):
            yield event(chunk)
        for index, sample in enumerate(samples):
            if sample.gate is not None:
                await sample.gate.wait()
            for chunk in closing_chunks(path, index, sample):
                yield event(chunk)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({**head(path), "choices": [], "usage": usage_of(samples)})
        yield b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def head(path: str) -> dict[str, Any]:
    """The fields that every chunk has."""
    kind = "chat.completion.chunk" if "chat" in path else "text_completion"
    return {"id": "x-1", "object": kind, "created": 1, "model": MODEL}


def opening_chunks(path: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The role chunks that vLLM sends first, in a chat."""
    if "chat" not in path:
        return []
    return [
        {**head(path), "choices": [{"index": index, "delta": {"role": "assistant", "content": ""}}]}
        for index in range(len(samples))
    ]


def closing_chunks(path: str, index: int, sample: Sample) -> list[dict[str, Any]]:
    """A candidate's text in two pieces, the second with its finish_reason and token count."""
    middle = len(sample.text) // 2
    pieces = [sample.text[:middle], sample.text[middle:]] if sample.delta is None else ["", ""]
    chunks = []
    for last, piece in enumerate(pieces):
        said: dict[str, Any] = {"delta": {"content": piece}} if "chat" in path else {"text": piece}
        if sample.delta is not None and last:
            said = {"delta": dict(sample.delta)}
        choice = {"index": index, **said, "finish_reason": sample.finish_reason if last else None}
        if sample.logprobs is not None and last:
            choice["logprobs"] = dict(sample.logprobs)
        usage = {"prompt_tokens": 5, "completion_tokens": sample.tokens if last else 1}
        chunks.append({**head(path), "choices": [choice], "usage": usage})
    return chunks


def usage_of(samples: Sequence[Sample]) -> dict[str, int]:
    """The sum that vLLM sends at the end."""
    completion = sum(sample.tokens for sample in samples)
    return {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion}


def whole_answer(path: str, body: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The answer that is not streamed."""
    choices = []
    for index, sample in enumerate(samples):
        said: dict[str, Any] = {"text": sample.text}
        if "chat" in path:
            said = {"message": {"role": "assistant", "content": sample.text}}
        choices.append({"index": index, **said, "finish_reason": sample.finish_reason})
    kind = "chat.completion" if "chat" in path else "text_completion"
    return {**head(path), "object": kind, "choices": choices, "usage": usage_of(samples)}


class FakeRewardServer(LoopbackServer):
    """rm_server (`/score`) and vLLM's `/pooling` without a model."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: dict[str, Any] = {}
        """By response; anything JSON can say, NaN too. Others get their length."""
        self.raw_scores: Any = None
        self.refusal: tuple[int, Any] | None = None
        self.max_length = math.inf
        self.refuse_roles: set[str] = set()
        """Roles that its template does not know."""
        self.extra: dict[str, Any] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.healthy = True

    def routes(self) -> list[web.RouteDef]:
        """See LoopbackServer."""
        return [
            web.post("/score", self._score),
            web.post("/pooling", self._pool),
            web.post("/get_reward", self._get_reward),
            web.get("/v1/models", self._list_models),
            web.get("/health/ready", self._health),
            web.get("/health", self._health),
        ]

    @property
    def judged(self) -> list[str]:
        """Every response that it was asked about, in order."""
        return [response for request in self.requests for response in request.body["responses"]]

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": REWARD_MODEL}]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _score(self, request: web.Request) -> web.StreamResponse:
        await self.hold.wait()
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0])
        question = await request.json()
        responses = question["responses"]
        if any(message["role"] in self.refuse_roles for message in question["messages"]):
            return web.json_response({"error": {"message": "no such role"}}, status=400)
        if any(len(response) > self.max_length for response in responses):
            error = {"message": "too long", "type": "x", "param": None, "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        scores = [self.rewards.get(response, length_reward(response)) for response in responses]
        answer = {
            "model": REWARD_MODEL,
            "version": "v1",
            "scores": scores if self.raw_scores is None else self.raw_scores,
            "usage": {"tokens": 10 * len(responses)},
            **self.extra,
        }
        return web.Response(text=json.dumps(answer), content_type="application/json")

    async def _get_reward(self, request: web.Request) -> web.Response:
        texts = (await request.json())["query"]
        rewards = [self.rewards.get(text, length_reward(text)) for text in texts]
        return web.Response(text=json.dumps({"rewards": rewards}), content_type="application/json")

    async def _pool(self, request: web.Request) -> web.Response:
        await self.hold.wait()
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0])
        response = (await request.json())["messages"][-1]["content"]
        data = [{"index": 0, "data": [self.rewards.get(response, length_reward(response))]}]
        return web.Response(
            text=json.dumps({"data": data, "usage": {"total_tokens": 7}}), content_type="application/json"
        )
