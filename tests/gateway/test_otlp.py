"""Traces of real requests through a real gateway, as a collector gets them."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.config import Limits, PolicyConfig
from gateway.otlp import OtlpTracer, ToldOnce
from gateway.tracing import current, under
from tests.collector import Collector, SpanSeen, collector
from tests.gateway.fake_servers import FakeVllm, Sample
from tests.gateway.stack import Stack, running

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
SECRET = "swordfish"


@asynccontextmanager
async def traced(**fields: Any) -> AsyncGenerator[tuple[Stack, Collector], None]:
    """A gateway before fakes; when it has closed, the collector has all spans."""
    with collector() as spans:
        async with running(otlp_traces_endpoint=spans.url, **fields) as stack:
            yield stack, spans


async def test_best_of_n_is_one_trace() -> None:
    async with traced() as (stack, spans):
        stack.vllm.samples = [Sample("a", tokens=2), Sample("bbb", tokens=3), Sample("cc", tokens=4)]
        answer = await stack.chat(best_of=3, n=2, temperature=0.5, seed=7, headers={"x-request-id": "mine"})
        assert answer.status_code == 200
    request = spans.one("server chat tiny")
    assert (request.parent_id, request.service) == ("", "bonsai-gateway")
    assert not request.is_error
    about = request.attributes
    assert about.pop("bonsai.reward.mean") == 2  # of lengths 1, 3 and 2
    assert about == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "bonsai",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 9,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "bonsai.request_id": "mine",
        "bonsai.best_of": 3,
        "bonsai.prompts": 1,
        "bonsai.candidates.scored": 3,
        "bonsai.reward.model": "judge",
        "bonsai.reward.version": "v1",
        "bonsai.reward.chosen": [3, 2],
    }
    # The reward calls overlap with generation, and how many there are the network decides.
    below = spans.under(request)
    assert below[:2] == ["admission", "client chat tiny"]
    assert set(below[2:]) == {"client score"}
    assert {span.trace_id for span in spans.spans} == {request.trace_id}
    assert all(request.start <= span.start <= span.end <= request.end for span in spans.spans)


async def test_a_call_names_its_peer_and_takes_the_trace_along() -> None:
    async with traced() as (stack, spans):
        await stack.chat(best_of=2, headers={"traceparent": TRACEPARENT, "tracestate": "vendor=x"})
        [sampling], calls = stack.vllm.requests, stack.rewards.requests
    request, upstream = spans.one("server chat tiny"), spans.one("client chat tiny")
    assert (request.trace_id, request.parent_id) == (TRACE_ID, SPAN_ID)
    assert sampling.headers["traceparent"] == f"00-{TRACE_ID}-{upstream.span_id}-01"
    assert sampling.headers["tracestate"] == "vendor=x"
    judged = {f"00-{TRACE_ID}-{span.span_id}-01" for span in spans.named("client score")}
    assert {call.headers["traceparent"] for call in calls} == judged
    assert upstream.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "server.address": "127.0.0.1",
        "server.port": int(stack.vllm.url.rsplit(":", 1)[1]),
        "bonsai.candidates": 2,
        "bonsai.sampled_again": False,
    }
    assert sum(span.attributes["bonsai.texts"] for span in spans.named("client score")) == 2


async def test_who_began_a_trace_decides_whether_it_is_sampled() -> None:
    async with traced() as (stack, spans):
        await stack.chat(headers={"traceparent": TRACEPARENT[:-1] + "0"})
        [sampling] = stack.vllm.requests
    assert sampling.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert sampling.headers["traceparent"].endswith("-00")
    assert spans.spans == []


@pytest.mark.parametrize("garbage", ["", "x", "00-0-0-01", f"ff-{TRACE_ID}-{SPAN_ID}-01", "0" * 5000])
async def test_a_traceparent_that_is_none_begins_a_trace(garbage: str) -> None:
    async with traced() as (stack, spans):
        assert (await stack.chat(headers={"traceparent": garbage})).status_code == 200
    assert spans.one("server chat tiny").parent_id == ""


async def test_answers_that_pass_through_are_traced_too() -> None:
    async with traced() as (stack, spans):
        await stack.complete(max_tokens=4)
        await stack.complete(stream=True, stream_options={"include_usage": True})
    whole, stream = spans.named("server text_completion tiny")
    for span in (whole, stream):
        assert span.attributes["gen_ai.usage.input_tokens"] == 5
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert span.attributes["bonsai.best_of"] == 1
        assert spans.under(span) == ["admission", "client text_completion tiny"]
    assert whole.attributes["gen_ai.request.max_tokens"] == 4
    assert stream.attributes["gen_ai.response.time_to_first_chunk"] > 0


async def test_prompts_answers_and_keys_are_never_in_a_trace() -> None:
    async with traced() as (stack, spans):
        stack.vllm.samples = [Sample(f"{SECRET} answered")] * 2
        asked = {"messages": [{"role": "user", "content": SECRET}], "stop": [SECRET], "user": SECRET}
        key = {"authorization": f"Bearer {SECRET}"}
        assert (await stack.chat(**asked, best_of=2, headers=key)).status_code == 200
        assert (await stack.chat(**asked, stream=True)).status_code == 200
        assert (await stack.chat(**asked, model=SECRET)).status_code == 404
        stack.vllm.refusal = (400, {"message": SECRET}, {})
        assert (await stack.chat(**asked)).status_code == 400
    assert len(spans.named("server chat tiny")) == 3
    assert spans.one("server chat other").attributes["error.type"] == "model_not_found"
    assert SECRET.encode() not in spans.raw


async def test_a_retry_is_a_second_call_and_an_event() -> None:
    second = FakeVllm()
    await second.start()
    with collector() as spans:
        async with running(
            policy_config=lambda vllm, _: PolicyConfig(urls=(vllm.url, second.url)),
            otlp_traces_endpoint=spans.url,
        ) as stack:
            for one in (stack.vllm, second):
                one.refusal = (500, {"message": "no"}, {})
            assert (await stack.chat()).status_code == 502
    await second.stop()
    request, calls = spans.one("server chat tiny"), spans.named("client chat tiny")
    assert request.events == [("retry", {"bonsai.retry.kind": "policy", "bonsai.retry.reason": "error"})]
    assert [(call.parent_id, call.is_error) for call in calls] == [(request.span_id, True)] * 2
    assert len({call.attributes["server.port"] for call in calls}) == 2
    assert request.is_error
    assert request.attributes["error.type"] == calls[-1].attributes["error.type"]
    assert request.attributes["http.response.status_code"] == 502


async def test_what_was_degraded_says_why() -> None:
    async with traced(on_reward_failure="first") as (stack, spans):
        stack.rewards.refusal = (500, {})
        assert (await stack.chat(best_of=2)).status_code == 200
    about = spans.one("server chat tiny").attributes
    assert about["bonsai.degraded"] == "reward_unavailable"
    assert about["bonsai.candidates.unscored"] == 2
    assert "bonsai.reward.chosen" not in about or about["bonsai.reward.chosen"] == []
    assert all(span.is_error for span in spans.named("client score"))


async def test_a_client_that_leaves_ends_the_spans_without_failures() -> None:
    gate = asyncio.Event()
    async with traced() as (stack, spans):
        stack.vllm.samples = [Sample("a", gate=gate)] * 2
        asking = asyncio.create_task(stack.chat(best_of=2))
        await stack.vllm.arrived.wait()
        asking.cancel()
        await stack.vllm.wait_idle()
    request, call = spans.one("server chat tiny"), spans.one("client chat tiny")
    assert (call.attributes["error.type"], call.is_error) == ("cancelled", False)
    assert (request.attributes["http.response.status_code"], request.is_error) == (499, False)
    assert request.attributes["bonsai.candidates.unfinished"] == 2


async def test_a_refusal_at_admission_stands_in_its_span() -> None:
    limits = Limits(max_best_of=1, max_candidates_per_request=1, max_concurrent_candidates=1, max_queue=0)
    async with traced(limits=limits, with_reward=False) as (stack, spans):
        stack.vllm.hold.clear()
        first = asyncio.create_task(stack.chat())
        await stack.vllm.arrived.wait()
        assert (await stack.chat()).status_code == 503
        stack.vllm.hold.set()
        assert (await first).status_code == 200
    refused = [span for span in spans.named("admission") if span.is_error]
    assert len(refused) == 1
    assert refused[0].attributes["error.type"] == "overloaded"


@pytest.mark.parametrize("field", ["top_k", "max_tokens", "seed"])
async def test_numbers_that_no_trace_can_hold_cost_nobody_else_their_span(field: str) -> None:
    async with traced() as (stack, spans):
        for number in (2**63 - 1, -(2**63), 2**63, 2**70, 9):
            await stack.chat(**{field: number})
    assert len(spans.named("server chat tiny")) == 5
    assert spans.named("server chat tiny")[-1].attributes[f"gen_ai.request.{field}"] == 9


async def test_probes_and_metrics_make_no_trace() -> None:
    async with traced() as (stack, spans):
        for path in ("/health", "/health/ready", "/metrics", "/v1/models", "/version"):
            assert (await stack.http.get(path)).status_code == 200
    assert spans.spans == []


@contextmanager
def silent_port() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"


@contextmanager
def dead_port() -> Iterator[str]:
    """One where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1/traces"


@pytest.mark.parametrize("port", [silent_port, dead_port])
async def test_a_dead_collector_fails_nothing(port: Any) -> None:
    with port() as endpoint:
        async with running(otlp_traces_endpoint=endpoint) as stack:
            answers = await asyncio.gather(*(stack.chat(best_of=2) for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
        # and the end of `running`, where it is flushed, was reached: `FLUSH_S` bounds the wait


class Scripted(SpanExporter):
    """An exporter whose results are given."""

    def __init__(self, *results: SpanExportResult) -> None:
        self._results = list(results)
        self.closed = 0

    def export(self, spans: Any) -> SpanExportResult:
        return self._results.pop(0)

    def shutdown(self) -> None:
        self.closed += 1


def test_that_the_collector_has_gone_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ok, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    inner = Scripted(ok, bad, bad, ok, ok)
    exporter = ToldOnce(inner)
    spans: Any = [object(), object()]
    assert [exporter.export(spans) for _ in range(5)] == [ok, bad, bad, ok, ok]
    exporter.shutdown()
    exporter.shutdown()
    assert inner.closed == 1
    assert exporter.export(spans) is bad
    assert [record.message for record in caplog.records] == [
        "the collector of traces does not take them: they are dropped until it does",
        "the collector of traces takes them again: 4 spans were lost",
    ]


async def test_a_bucket_remembers_a_trace() -> None:
    accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    async with traced() as (stack, _):
        await stack.chat(stream=True, headers={"traceparent": TRACEPARENT})
        said = await stack.http.get("/metrics", headers=accept)
        plain = await stack.http.get("/metrics")
    assert said.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    for name in ("request_seconds", "first_byte_seconds"):
        buckets = [line for line in said.text.splitlines() if f"{name}_bucket" in line]
        assert [line for line in buckets if f'# {{trace_id="{TRACE_ID}"}}' in line], buckets
    assert plain.headers["content-type"].startswith("text/plain")
    assert TRACE_ID not in plain.text


def test_a_span_is_the_current_one_only_in_its_block() -> None:
    with collector() as spans:
        tracer = OtlpTracer(spans.url)
        with tracer.request("outer", {}, {}) as span, under(span):
            assert current() is span
            with current().child("inner", {"left_out": None, "kept": 1}):
                pass
        assert not current().recording
        tracer.close()
    assert spans.under(spans.one("server outer")) == ["inner"]
    assert spans.one("inner").attributes == {"kept": 1}


def test_a_failure_that_is_no_error_of_ours_is_named_by_its_type() -> None:
    with collector() as spans:
        tracer = OtlpTracer(spans.url)
        with pytest.raises(ZeroDivisionError), tracer.request("outer", {}, {}):
            raise ZeroDivisionError
        tracer.close()
    seen: SpanSeen = spans.one("server outer")
    assert (seen.is_error, seen.attributes) == (True, {"error.type": "ZeroDivisionError"})
    assert json.dumps(seen.events) == "[]"
