"""What the gateway does with a request: two paths, no third.

best_of 1: admission -> policy, and the policy's bytes go back untouched. best_of > 1: admission -> sample ->
score -> select -> answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
from starlette.responses import Response

from gateway import answers
from gateway.admission import Admission, Desk, Ticket
from gateway.answers import Asked, Identity
from gateway.best_of_n import STREAM_INTERVAL, BestOfN, Outcome, Plan
from gateway.candidates import Candidate, judged_messages, judged_text
from gateway.config import GatewayConfig
from gateway.drain import Drain
from gateway.errors import DeadlineError, GatewayError, UpstreamError
from gateway.fields import ignored_header
from gateway.intake import Job
from gateway.metered import Metered
from gateway.metrics import Metrics
from gateway.middleware import Trace
from gateway.names import Names
from gateway.policy import Policy, Reply
from gateway.protocol import ChatRequest
from gateway.rewards import Question, RewardModel
from gateway.sse import encode_event
from gateway.streaming import EVENT_STREAM, EventStream, relay, stop, with_heartbeats
from gateway.upstream import UNREADABLE, token_count

DEADLINE_RESERVE = 0.25
DEADLINE_RESERVE_MAX_S = 0.5


class Counted(msgspec.Struct):
    """What metrics read of a policy's answer; decoding it also proves that the answer is JSON."""

    usage: dict[str, Any] | None = None


@dataclass
class Exchange:
    """One request on its way: its id, its clock, and what it holds until the answer has gone."""

    request_id: str
    stack: AsyncExitStack
    trace: Trace
    queue_s: float = 0.0

    @property
    def upstream_id(self) -> str:
        """Never the client's id alone: an engine drops one of two requests that share an id."""
        return f"{self.request_id}-{uuid4().hex[:8]}"

    def elapsed(self) -> float:
        """Seconds since the request came in."""
        return time.perf_counter() - self.trace.start


@dataclass(frozen=True)
class Due:
    """When an answer is due."""

    at: float
    """Loop time."""
    reserve_s: float
    """The end of that time, which is kept for the reward model."""

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """End the body of this block when the time has come; then raise DeadlineError."""
        try:
            async with asyncio.timeout_at(self.at):
                yield
        except TimeoutError:
            raise DeadlineError("The deadline came before generation could start.") from None


class Service:
    """The gateway without HTTP."""

    def __init__(
        self, config: GatewayConfig, policy: Policy, reward: RewardModel | None, metrics: Metrics
    ) -> None:
        self.config = config
        self.policy = policy
        self.reward = reward
        self.metrics = metrics
        self.models = Names(policy, config.policy.name)
        self.drain = Drain()
        self._admission: Admission = Metered(Desk(config.limits), metrics)

    async def generate(self, job: Job, exchange: Exchange) -> Response:
        """Answer a generation request."""
        if job.bypass is not None:
            self.metrics.bypassed.labels(job.bypass).inc()
        if job.best_of > 1:
            return await self._align(job, exchange)
        await self._admit(job, exchange)
        return await self._pass_through(job.path, job.upstream_body, job.ignored, exchange)

    async def ask(self, path: str, body: dict[str, Any], ignored: list[str], exchange: Exchange) -> Response:
        """Pass a request through that generates nothing."""
        return await self._pass_through(path, body, ignored, exchange)

    async def _admit(self, job: Job, exchange: Exchange) -> None:
        grant = await exchange.stack.enter_async_context(self._admission.hold(Ticket(slots=job.slots)))
        exchange.queue_s = grant.queue_s

    async def _pass_through(
        self, path: str, body: dict[str, Any], ignored: list[str], exchange: Exchange
    ) -> Response:
        headers = _ignored_headers(ignored)
        asked_at = time.perf_counter()
        reply = await exchange.stack.enter_async_context(self.policy.open(path, body, exchange.upstream_id))
        if body.get("stream"):
            if not reply.content_type.startswith("text/event-stream"):
                raise UpstreamError("The policy server answered something that is no stream.")
            return self._stream(relay(reply), exchange, headers, reply.content_type)
        content = await self._read(reply)
        took = time.perf_counter() - asked_at
        self.metrics.upstream_seconds.labels("pass_through").observe(took)
        self._observe_self(exchange, took, "pass_through")
        headers["server-timing"] = answers.server_timing(exchange.queue_s, took, 0.0)
        headers["content-type"] = reply.content_type
        return Response(content, headers=headers)

    async def _read(self, reply: Reply) -> bytes:
        content = await reply.read()
        try:
            usage = msgspec.json.decode(content, type=Counted).usage or {}
        except UNREADABLE as error:
            raise UpstreamError("The policy server answered something that is not JSON.") from error
        for kind in ("prompt", "completion"):
            self.metrics.tokens.labels(kind).inc(token_count(usage.get(f"{kind}_tokens")))
        return content

    def _due(self, job: Job, exchange: Exchange) -> Due:
        limit_s, reserve_s = self.config.policy.timeout_s, 0.0
        if job.options.deadline_ms is not None:
            limit_s = min(limit_s, job.options.deadline_ms / 1000)
            reserve_s = min(limit_s * DEADLINE_RESERVE, DEADLINE_RESERVE_MAX_S)
        return Due(asyncio.get_running_loop().time() + limit_s - exchange.elapsed(), reserve_s)

    async def _align(self, job: Job, exchange: Exchange) -> Response:
        due = self._due(job, exchange)
        async with due.limit():
            await self._admit(job, exchange)
        identity = _identity(job, exchange)
        asked = self._asked(job)
        self.metrics.best_of.observe(job.best_of)
        work = asyncio.create_task(self._run(job, due, exchange))
        exchange.stack.push_async_callback(stop, work)
        headers = {"x-best-of": str(job.best_of), **_ignored_headers(job.ignored)}
        if not job.request.stream:
            return self._whole(await work, identity, asked, exchange, headers)
        await asyncio.wait({work}, timeout=self.config.heartbeat_s)
        if work.done():
            work.result()  # a failure before the first byte keeps its status
        events = with_heartbeats(work, self.config.heartbeat_s, _beats(identity), _render(identity, asked))
        return self._stream(events, exchange, headers, EVENT_STREAM)

    def _whole(
        self, outcome: Outcome, identity: Identity, asked: Asked, exchange: Exchange, headers: dict[str, str]
    ) -> Response:
        content = msgspec.json.encode(answers.body(identity, outcome, asked))
        headers |= answers.headers(outcome, asked, exchange.queue_s)
        self._observe_self(exchange, outcome.generate_s + outcome.reward_s, "best_of_n")
        return Response(content, headers=headers, media_type="application/json")

    def _stream(
        self, events: Any, exchange: Exchange, headers: dict[str, str], media_type: str
    ) -> EventStream:
        def on_error(error: GatewayError) -> None:
            exchange.trace.late_code = "499" if error.status == 499 else "stream_error"
            if error.status != 499:
                self.metrics.errors.labels(error.code).inc()

        return EventStream(
            events,
            resources=exchange.stack.pop_all(),
            drain=self.drain,
            headers=headers,
            media_type=media_type,
            on_error=on_error,
            on_first=lambda: self.metrics.first_byte_seconds.observe(exchange.elapsed()),
        )

    async def _run(self, job: Job, due: Due, exchange: Exchange) -> Outcome:
        assert self.reward is not None
        plan = await self._plan(job, due, exchange)
        judged = _judge_chat if job.chat else _judge_completion
        return await BestOfN(plan, self.policy, self.reward, judged, self.metrics).run()

    async def _plan(self, job: Job, due: Due, exchange: Exchange) -> Plan:
        async with due.limit():
            questions, prefixes = await self._questions(job, exchange)
        return Plan(
            path=job.path,
            upstream_body=_sampling_body(job),
            request_id=exchange.upstream_id,
            questions=questions,
            prefixes=prefixes,
            n=job.n,
            best_of=job.best_of,
            samples=job.samples,
            first_on_failure=(job.options.on_reward_failure or self.config.on_reward_failure) == "first",
            deadline=due.at,
            reserve_s=due.reserve_s,
        )

    async def _questions(self, job: Job, exchange: Exchange) -> tuple[list[Question], list[str]]:
        conversations, prefixes = await self._conversations(job, exchange)
        questions = [
            Question(
                messages=conversation,
                responses=(),
                model=job.options.reward_model,
                ensemble=job.options.ensemble,
                objectives=job.options.objectives,
            )
            for conversation in conversations
        ]
        return questions, prefixes

    async def _conversations(
        self, job: Job, exchange: Exchange
    ) -> tuple[list[list[dict[str, str]]], list[str]]:
        if isinstance(job.request, ChatRequest):
            messages = judged_messages(msgspec.to_builtins(job.request.messages))
            if job.request.continue_final_message and messages[-1]["role"] == "assistant":
                return [messages[:-1]], [messages[-1]["content"]]
            return [messages], [""]
        texts = [await self._text(prompt, job.model, exchange) for prompt in job.prompts]
        return [[{"role": "user", "content": text}] for text in texts], [""] * len(texts)

    async def _text(self, prompt: str | list[int], model: str, exchange: Exchange) -> str:
        if isinstance(prompt, str):
            return prompt
        body = {"model": model, "tokens": prompt}
        async with self.policy.open("/detokenize", body, exchange.upstream_id) as reply:
            try:
                return str(msgspec.json.decode(await reply.read())["prompt"])
            except (*UNREADABLE, KeyError, TypeError) as error:
                raise UpstreamError("The policy server could not turn token ids into text.") from error

    def _asked(self, job: Job) -> Asked:
        stream_options = job.request.stream_options
        return Asked(
            best_of=job.best_of,
            reward_model=job.options.reward_model or (self.reward.name if self.reward else None),
            return_candidates=bool(job.options.return_candidates),
            include_usage=bool(stream_options and stream_options.include_usage),
            is_list=job.is_list,
        )

    def _observe_self(self, exchange: Exchange, elsewhere_s: float, mode: str) -> None:
        own = exchange.elapsed() - exchange.queue_s - elsewhere_s
        self.metrics.self_seconds.labels(mode).observe(max(own, 0.0))


def _identity(job: Job, exchange: Exchange) -> Identity:
    kind = "chatcmpl" if job.chat else "cmpl"
    return Identity(
        id=f"{kind}-{exchange.request_id}", created=int(time.time()), model=job.model, chat=job.chat
    )


def _sampling_body(job: Job) -> dict[str, Any]:
    return job.upstream_body | {
        "n": job.samples,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "stream_interval": STREAM_INTERVAL,
    }


def _ignored_headers(ignored: list[str]) -> dict[str, str]:
    return {"x-ignored-fields": ignored_header(ignored)} if ignored else {}


def _judge_chat(candidate: Candidate) -> str:
    return judged_text(candidate.message.get("content"), candidate.message.get("tool_calls"))


def _judge_completion(candidate: Candidate) -> str:
    return candidate.text


def _beats(identity: Identity) -> Iterator[bytes]:
    yield encode_event(answers.role_chunk(identity, 0))
    beat = encode_event(answers.heartbeat_chunk(identity))
    while True:
        yield beat


def _render(identity: Identity, asked: Asked) -> Any:
    def render(outcome: Outcome, role_sent: bool) -> Iterator[bytes]:
        return (
            encode_event(chunk) for chunk in answers.chunks(identity, outcome, asked, role_sent=role_sent)
        )

    return render
