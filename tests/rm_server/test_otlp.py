"""Traces of real requests, as a collector gets them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from rm_server.__main__ import main, traces
from rm_server.batcher import Batcher
from rm_server.metrics import Metrics
from rm_server.otlp import OtlpTracer, ToldOnce
from rm_server.tracing import NO_SPAN, NoTracer, current
from rm_server.vllm_engine import VllmEngine
from tests.collector import Collector, collector
from tests.rm_server.fake_vllm import fake_vllm
from tests.rm_server.fakes import BROKEN, FakeScorer, fake_app, fake_model, running, sample, until

ASK = {"messages": [{"role": "user", "content": "1 2"}], "responses": ["3", "4 5"]}
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@asynccontextmanager
async def traced(
    executor: Executor, metrics: Metrics, scorer: FakeScorer | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Collector]]:
    """A server over a fake model; when it has closed, the collector has all spans."""
    with collector() as spans:
        tracer = OtlpTracer(spans.url)
        app = fake_app(fake_model(scorer or FakeScorer(), executor, metrics), metrics=metrics, tracer=tracer)
        async with running(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://rm") as http:
                yield http, spans
        await asyncio.to_thread(tracer.close)


async def test_a_score_is_part_of_its_clients_trace(executor: Executor, metrics: Metrics) -> None:
    async with traced(executor, metrics) as (http, spans):
        headers = {"traceparent": TRACEPARENT, "x-request-id": "mine"}
        assert (await http.post("/score", json=ASK, headers=headers)).status_code == 200
    request, judge, batch = spans.one("server score fake"), spans.one("judge"), spans.one("forward pass")
    assert (request.trace_id, request.parent_id, request.service) == (TRACE_ID, SPAN_ID, "bonsai-rm-server")
    assert request.attributes == {
        "gen_ai.operation.name": "score",
        "gen_ai.provider.name": "bonsai",
        "gen_ai.request.model": "fake",
        "bonsai.model.version": "v1",
        "bonsai.request_id": "mine",
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
    }
    assert spans.under(request) == ["tokenize", "judge"]
    assert judge.attributes == {
        "gen_ai.request.model": "fake",
        "bonsai.model.version": "v1",
        "bonsai.texts": 2,
    }
    assert spans.under(judge) == ["queue", "forward pass"]
    assert batch.attributes == {"bonsai.batch.rows": 2, "bonsai.batch.tokens": 7}  # 1 2 3, and 1 2 4 5
    queue = spans.one("queue")
    assert queue.start <= queue.end == batch.start < batch.end
    assert {span.trace_id for span in spans.spans} == {TRACE_ID}


async def test_requests_that_share_a_forward_pass_each_have_it(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(held=True)
    batcher = Batcher(scorer, executor, metrics, max_batch_tokens=100, max_queue_tokens=100)
    working = asyncio.create_task(batcher.run())
    with collector() as spans:
        tracer = OtlpTracer(spans.url)

        async def ask() -> None:
            with tracer.request("score", {}, {}):
                await batcher.score([[1, 2], [3, 4]])

        first = asyncio.create_task(ask())
        await scorer.entered()
        others = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: sample(metrics, "queue_tokens") == 8)
        scorer.release(2)
        await asyncio.gather(first, *others)
        await asyncio.to_thread(tracer.close)
    working.cancel()
    passes = spans.named("forward pass")
    assert sorted(span.attributes["bonsai.batch.rows"] for span in passes) == [2, 4, 4]
    assert sorted(span.attributes["bonsai.batch.tokens"] for span in passes) == [4, 8, 8]
    requests = {span.span_id for span in spans.named("server score")}
    assert {span.parent_id for span in passes} == requests
    assert {span.parent_id for span in spans.named("queue")} == requests
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pooling", {"input": "1 2"}),
        ("/classify", {"input": "1 2"}),
        ("/get_reward", {"query": "1 2"}),
        ("/v1/rerank", {"query": "1", "documents": ["2"]}),
    ],
)
async def test_every_form_is_traced(
    path: str, body: dict[str, Any], executor: Executor, metrics: Metrics
) -> None:
    async with traced(executor, metrics) as (http, spans):
        assert (await http.post(path, json=body)).status_code == 200
    assert spans.one(f"server {path.rsplit('/', 1)[1]} fake").attributes["http.route"] == path


async def test_failures_are_errors_and_refusals_are_not(executor: Executor, metrics: Metrics) -> None:
    async with traced(executor, metrics) as (http, spans):
        assert (await http.post("/score", json={**ASK, "responses": [str(BROKEN)]})).status_code == 500
        assert (await http.post("/score", json={**ASK, "model": "swordfish"})).status_code == 404
        for path in ("/health", "/metrics", "/v1/models", "/swordfish"):
            await http.get(path)
    failed, refused = spans.one("server score fake"), spans.one("server score")
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "500")
    assert (refused.is_error, refused.attributes["http.response.status_code"]) == (False, 404)
    assert spans.one("judge").is_error
    assert b"swordfish" not in spans.raw
    assert len([span for span in spans.spans if span.name.startswith("server")]) == 2


async def test_a_vllm_that_computes_gets_the_trace_along(metrics: Metrics) -> None:
    with collector() as spans, fake_vllm() as vllm:
        tracer = OtlpTracer(spans.url)
        engine = VllmEngine(vllm.url, "served-name", metrics, num_labels=1, max_queue_tokens=99)
        working = asyncio.create_task(engine.run())
        with tracer.request("score", {}, {}):
            assert (await engine.score([[1, 2]])).logits == [[3.0]]
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await asyncio.to_thread(tracer.close)
        port = int(vllm.url.rsplit(":", 1)[1])
    call = spans.one("client pooling served-name")
    assert vllm.headers[-1]["traceparent"].startswith(f"00-{call.trace_id}-{call.span_id}-")
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("127.0.0.1", port)


async def test_a_cancelled_part_is_no_failure() -> None:
    with collector() as spans:
        tracer = OtlpTracer(spans.url)

        async def wait_for_ever() -> None:
            with tracer.request("score", {}, {}):
                await asyncio.Event().wait()

        waiting = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.to_thread(tracer.close)
    span = spans.one("server score")
    assert (span.is_error, span.attributes) == (False, {"error.type": "cancelled"})


async def test_a_bucket_remembers_a_trace(executor: Executor, metrics: Metrics) -> None:
    async with traced(executor, metrics) as (http, _):
        await http.post("/score", json=ASK, headers={"traceparent": TRACEPARENT})
        said = await http.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
        plain = await http.get("/metrics")
    assert said.headers["content-type"].startswith("application/openmetrics-text")
    buckets = [line for line in said.text.splitlines() if "request_seconds_bucket" in line]
    assert [line for line in buckets if f'# {{trace_id="{TRACE_ID}"}}' in line]
    assert said.text.endswith("# EOF\n")
    assert plain.headers["content-type"].startswith("text/plain")
    assert TRACE_ID not in plain.text


@contextmanager
def silent_server() -> Any:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"


async def test_a_dead_collector_fails_nothing(executor: Executor, metrics: Metrics) -> None:
    with silent_server() as endpoint, traces(endpoint) as tracer:
        app = fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics, tracer=tracer)
        async with (
            running(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rm") as http,
        ):
            answers = await asyncio.gather(*(http.post("/score", json=ASK) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}


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


def test_without_an_endpoint_nothing_is_recorded() -> None:
    with traces(None) as tracer:
        assert isinstance(tracer, NoTracer)
        with tracer.request("score", {"traceparent": TRACEPARENT}, {}) as span:
            assert span is current() is NO_SPAN
            assert span.child("part", {"a": 1}, client=True) is NO_SPAN
            span.set({"a": 1})
            span.past("queue", 0.0, 1.0, {})
            span.judged_by("model", "v1")
            span.fail("error")
            assert (span.exemplar, span.headers()) == (None, {})


@pytest.mark.slow  # an interpreter that imports transformers
def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    looked = (
        "import sys, rm_server.__main__; print([n for n in sys.modules if n.startswith('opentelemetry')])"
    )
    command = [sys.executable, "-c", looked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("url", ["collector:4318", "http://", "http://u:p@x/v1/traces"])
def test_an_endpoint_that_is_none_is_exit_code_2(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "x", "--otlp-traces-endpoint", url]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "--otlp-traces-endpoint" in line
    assert "u:p" not in line
