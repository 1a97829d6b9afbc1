"""What the gateway does with a request: two paths, no third.

best_of 1: admission -> policy, and the policy's bytes go back untouched. best_of > 1: admission -> sample ->
score -> select -> answer.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response

from gateway import answers, genai
from gateway.admission import Admission, Grant, Ticket
from gateway.answers import Asked, Identity
from gateway.best_of_n import STREAM_INTERVAL, BestOfN, Outcome, Plan
from gateway.candidates import Candidate, judged_messages, judged_text
from gateway.drain import Drain
from gateway.errors import DeadlineError, GatewayError, UpstreamError
from gateway.fields import ignored_header
from gateway.intake import Job
from gateway.keys import Key
from gateway.metrics import Metrics
from gateway.middleware import Trace
from gateway.policy import Call, Policy
from gateway.protocol import ChatRequest
from gateway.rewards import Question
from gateway.runtime import Judge, Runtime
from gateway.sse import encode_event
from gateway.streaming import EventStream, StreamTokens, in_time, relay, stop, with_heartbeats
from gateway.upstream import UNREADABLE, token_count

DEADLINE_RESERVE = 0.25
DEADLINE_RESERVE_MAX_S = 0.5
MODES = ("pass_through", "best_of_n")


@dataclass
class Exchange:
    """One request on its way: what it goes by, its clock, and what it holds until the answer has gone."""

    runtime: Runtime
    request_id: str
    stack: AsyncExitStack
    trace: Trace
    key: Key | None = None
    grant: Grant = field(default_factory=Grant)

    @property
    def upstream_id(self) -> str:
        """Never the client's id alone: an engine drops one of two requests that share an id."""
        return f"{self.request_id}-{os.urandom(4).hex()}"

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
    is_asked: bool = False
    """Whether the client has set it."""

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """End the body of this block when the time has come; then raise DeadlineError."""
        try:
            async with asyncio.timeout_at(self.at):
                yield
        except TimeoutError:
            raise DeadlineError("The deadline came before there was an answer.") from None


class Service:
    """The gateway without HTTP."""

    def __init__(self, admission: Admission, metrics: Metrics) -> None:
        self.metrics = metrics
        self.drain = Drain()
        self._admission = admission
        # Found once: looking labels up costs more than counting.
        self._prompt_tokens = metrics.tokens.labels("prompt")
        self._completion_tokens = metrics.tokens.labels("completion")
        self._pass_through_seconds = metrics.upstream_seconds.labels("pass_through")
        self._self_seconds = {mode: metrics.self_seconds.labels(mode) for mode in MODES}
        self._first_byte_seconds = {mode: metrics.first_byte_seconds.labels(mode) for mode in MODES}

    async def generate(self, job: Job, exchange: Exchange) -> Response:
        """Answer a generation request."""
        if exchange.trace.span.recording:
            exchange.trace.span.set(genai.asked(job, exchange.request_id))
        if job.bypass is not None:
            self.metrics.bypassed.labels(job.bypass).inc()
        if job.best_of > 1:
            return await self._align(job, exchange)
        due = self._due(job, exchange)
        async with due.limit():
            return await self._pass_through(job, due, exchange)

    async def _pass_through(self, job: Job, due: Due, exchange: Exchange) -> Response:
        await self._admit(job, due, exchange)
        call = Call(
            path=job.path,
            body=job.upstream_body,
            request_id=exchange.upstream_id,
            work=job.slots,
            affinity=job.affinity,
            asked=exchange.trace.replicas,
        )
        headers = _headers(job, exchange)
        if job.request.stream:
            return await self._pass_stream(call, job.route.policy.client, headers, due, exchange)
        return await self._pass_whole(call, job.route.policy.client, headers, exchange)

    async def ask(self, call: Call, policy: Policy, ignored: list[str], exchange: Exchange) -> Response:
        """Pass a request through that generates nothing."""
        return await self._pass_whole(call, policy, _ignored_headers(ignored), exchange)

    async def _admit(self, job: Job, due: Due, exchange: Exchange) -> None:
        key = exchange.key
        ticket = Ticket(
            slots=job.slots,
            key=key.id if key else None,
            allowance=key.allowance if key else None,
            max_wait_s=max(due.at - asyncio.get_running_loop().time(), 0.0) if job.deadline_s else None,
            retry=job.retry,
        )
        with exchange.trace.span.child("admission", {"bonsai.candidate_slots": job.slots}):
            exchange.grant = await exchange.stack.enter_async_context(self._admission.hold(ticket))
        exchange.trace.queue_s = exchange.grant.queue_s

    async def _pass_whole(
        self, call: Call, policy: Policy, headers: dict[str, str], exchange: Exchange
    ) -> Response:
        asked_at = time.perf_counter()
        answer = await policy.fetch(call)
        took = time.perf_counter() - asked_at
        self._count_whole(answer.usage, exchange)
        self._pass_through_seconds.observe(took)
        self._observe_self(exchange, took, "pass_through")
        headers["server-timing"] = answers.server_timing(exchange.grant.queue_s, took, 0.0)
        return Response(answer.content, headers=headers, media_type="application/json")

    async def _pass_stream(
        self, call: Call, policy: Policy, headers: dict[str, str], due: Due, exchange: Exchange
    ) -> Response:
        tokens = StreamTokens()
        if exchange.key is not None and exchange.key.tokens_per_day is not None:
            tokens.ask(call.body)
        exchange.stack.callback(self._count_stream, tokens, exchange)
        reply = await exchange.stack.enter_async_context(policy.open(call))
        events = relay(reply, tokens)
        if due.is_asked:
            events = in_time(events, due.at)
        return self._stream(events, exchange, headers, "pass_through")

    def _count_stream(self, tokens: StreamTokens, exchange: Exchange) -> None:
        self._count_tokens(tokens.prompt, tokens.completion, exchange)
        exchange.grant.charge(tokens.charge)

    def _count_whole(self, usage: dict[str, Any], exchange: Exchange) -> None:
        prompt, completion = (token_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion"))
        self._count_tokens(prompt, completion, exchange)
        exchange.grant.charge(prompt + completion)

    def _count_tokens(self, prompt: int, completion: int, exchange: Exchange) -> None:
        exchange.trace.tokens = prompt + completion
        exchange.trace.span.set(genai.usage(prompt, completion))
        self._prompt_tokens.inc(prompt)
        self._completion_tokens.inc(completion)

    def _due(self, job: Job, exchange: Exchange) -> Due:
        limit_s, reserve_s = job.route.policy.config.timeout_s, 0.0
        if job.deadline_s is not None:
            limit_s = min(limit_s, job.deadline_s)
            reserve_s = min(limit_s * DEADLINE_RESERVE, DEADLINE_RESERVE_MAX_S)
        at = asyncio.get_running_loop().time() + limit_s - exchange.elapsed()
        return Due(at, reserve_s, is_asked=job.deadline_s is not None)

    async def _align(self, job: Job, exchange: Exchange) -> Response:
        judge = exchange.runtime.judge(job.options.reward_model)
        due = self._due(job, exchange)
        async with due.limit():
            await self._admit(job, due, exchange)
        identity = _identity(job, exchange)
        asked = _asked(job, judge, exchange)
        self.metrics.best_of.observe(job.best_of)
        exchange.trace.best_of = job.best_of
        work = asyncio.create_task(self._run(job, judge, due, exchange))
        exchange.stack.push_async_callback(stop, work)
        headers = {"x-best-of": str(job.best_of), **_headers(job, exchange)}
        if not job.request.stream:
            return self._whole(await work, identity, asked, exchange, headers)
        heartbeat_s = exchange.runtime.config.heartbeat_s
        await asyncio.wait({work}, timeout=heartbeat_s)
        if work.done():
            work.result()  # a failure before the first byte keeps its status
        events = with_heartbeats(work, heartbeat_s, _beats(identity), _render(identity, asked))
        return self._stream(events, exchange, headers, "best_of_n")

    def _whole(
        self, outcome: Outcome, identity: Identity, asked: Asked, exchange: Exchange, headers: dict[str, str]
    ) -> Response:
        content = msgspec.json.encode(answers.body(identity, outcome, asked))
        headers |= answers.headers(outcome, asked)
        self._observe_self(exchange, outcome.generate_s + outcome.reward_s, "best_of_n")
        return Response(content, headers=headers, media_type="application/json")

    def _stream(self, events: Any, exchange: Exchange, headers: dict[str, str], mode: str) -> EventStream:
        return EventStream(
            events,
            resources=exchange.stack.pop_all(),
            drain=self.drain,
            headers=headers,
            on_error=partial(self._note_stream_error, exchange.trace),
            on_first=partial(self._note_first_byte, exchange, mode),
        )

    def _note_first_byte(self, exchange: Exchange, mode: str) -> None:
        seconds, span = exchange.elapsed(), exchange.trace.span
        span.set({"gen_ai.response.time_to_first_chunk": seconds})
        self._first_byte_seconds[mode].observe(seconds, span.exemplar)

    def _note_stream_error(self, trace: Trace, error: GatewayError, begun: bool) -> None:
        if begun:
            trace.late_code = "499" if error.status == 499 else "stream_error"
        if error.status != 499 or not begun:
            self.metrics.errors.labels(error.code).inc()
            trace.error_code = error.code

    async def _run(self, job: Job, judge: Judge, due: Due, exchange: Exchange) -> Outcome:
        plan = await self._plan(job, judge, due, exchange)
        judged = _judge_chat if job.chat else _judge_completion
        run = BestOfN(plan, job.route.policy.client, judge.client, judged, self.metrics)
        try:
            outcome = await run.run()
        finally:
            exchange.grant.charge(run.tokens)
        _note(exchange.trace, outcome)
        return outcome

    async def _plan(self, job: Job, judge: Judge, due: Due, exchange: Exchange) -> Plan:
        async with due.limit():
            questions, prefixes = await self._questions(job, judge, exchange)
        on_failure = job.options.on_reward_failure or exchange.runtime.config.on_reward_failure
        return Plan(
            path=job.path,
            upstream_body=_sampling_body(job),
            request_id=exchange.upstream_id,
            questions=questions,
            prefixes=prefixes,
            n=job.n,
            best_of=job.best_of,
            samples=job.samples,
            first_on_failure=on_failure == "first",
            deadline=due.at,
            reserve_s=due.reserve_s,
            max_per_call=job.route.policy.config.max_candidates_per_call,
            affinity=job.affinity,
            asked=exchange.trace.replicas,
        )

    async def _questions(
        self, job: Job, judge: Judge, exchange: Exchange
    ) -> tuple[list[Question], list[str]]:
        conversations, prefixes = await self._conversations(job, exchange)
        questions = [
            Question(
                messages=conversation,
                responses=(),
                model=None if judge.config.name is not None else job.options.reward_model,
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
        texts = [await _text(prompt, job, exchange) for prompt in job.prompts]
        return [[{"role": "user", "content": text}] for text in texts], [""] * len(texts)

    def _observe_self(self, exchange: Exchange, elsewhere_s: float, mode: str) -> None:
        own = exchange.elapsed() - exchange.grant.queue_s - elsewhere_s
        self._self_seconds[mode].observe(max(own, 0.0))


async def _text(prompt: str | list[int], job: Job, exchange: Exchange) -> str:
    if isinstance(prompt, str):
        return prompt
    body = {"model": job.route.model, "tokens": prompt}
    call = Call(path="/detokenize", body=body, request_id=exchange.upstream_id, work=0, affinity=job.affinity)
    answer = await job.route.policy.client.fetch(call)
    try:
        return str(msgspec.json.decode(answer.content)["prompt"])
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise UpstreamError("The policy server could not turn token ids into text.") from error


def _note(trace: Trace, outcome: Outcome) -> None:
    usage = outcome.usage
    trace.tokens = usage.prompt_tokens + (usage.completion_tokens or 0)
    trace.scored = sum(len(selection.rewards) for selection in outcome.selections)
    trace.degraded = next((s.degraded for s in outcome.selections if s.degraded), None)
    if trace.span.recording:
        trace.span.set(genai.usage(usage.prompt_tokens, usage.completion_tokens or 0) | genai.chosen(outcome))


def _asked(job: Job, judge: Judge, exchange: Exchange) -> Asked:
    stream_options = job.request.stream_options
    return Asked(
        best_of=job.best_of,
        reward_model=judge.config.name or job.options.reward_model or judge.config.model,
        return_candidates=bool(job.options.return_candidates),
        include_usage=bool(stream_options and stream_options.include_usage),
        is_list=job.is_list,
        queue_s=exchange.grant.queue_s,
    )


def _identity(job: Job, exchange: Exchange) -> Identity:
    kind = "chatcmpl" if job.chat else "cmpl"
    return Identity(
        id=f"{kind}-{exchange.request_id}", created=int(time.time()), model=job.route.model, chat=job.chat
    )


def _sampling_body(job: Job) -> dict[str, Any]:
    return job.upstream_body | {
        "n": job.samples,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "stream_interval": STREAM_INTERVAL,
    }


def _headers(job: Job, exchange: Exchange) -> dict[str, str]:
    headers = _ignored_headers(job.ignored) | exchange.grant.rate.headers()
    if job.neutralised:
        headers["x-neutralised-control-text"] = str(job.neutralised)
    return headers


def _ignored_headers(ignored: list[str]) -> dict[str, str]:
    return {"x-ignored-fields": ignored_header(ignored)} if ignored else {}


def _judge_chat(candidate: Candidate) -> str:
    message = candidate.message
    return judged_text(message.get("content") or message.get("refusal"), message.get("tool_calls"))


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
