"""One request is one trace through the gateway, the policy server and the reward server; and processes that
are told to leave send what they have recorded."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gateway.config import RewardConfig
from rm_server.metrics import Metrics
from rm_server.otlp import OtlpTracer
from tests.collector import collector
from tests.gateway.fake_servers import FakeVllm, Sample
from tests.gateway.processes import gateway
from tests.gateway.stack import running, serving
from tests.rm_server.fakes import FakeScorer, fake_app, fake_model

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_a_request_is_one_trace_through_both_servers() -> None:
    metrics = Metrics()
    with collector() as spans, ThreadPoolExecutor(1) as executor:
        tracer = OtlpTracer(spans.url)
        judge = fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics, tracer=tracer)
        async with (
            serving(judge) as url,
            running(reward_config=RewardConfig(urls=(url,)), otlp_traces_endpoint=spans.url) as stack,
        ):
            stack.vllm.samples = [Sample("3"), Sample("9"), Sample("5")]
            answer = await stack.chat(
                best_of=3,
                messages=[{"role": "user", "content": "1 2"}],
                headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"},
            )
        await asyncio.to_thread(tracer.close)
    assert answer.json()["choices"][0]["message"]["content"] == "9"
    assert {span.trace_id for span in spans.spans} == {TRACE_ID}
    request = spans.one("server chat tiny")
    assert request.parent_id == SPAN_ID
    assert request.attributes["bonsai.reward.chosen"] == [12]  # 1 + 2 + 9
    asked, judged = spans.named("client score"), spans.named("server score fake")
    assert {span.parent_id for span in asked} == {request.span_id}
    assert sorted(span.parent_id for span in judged) == sorted(span.span_id for span in asked)
    assert {(span.service, span.attributes["bonsai.model.version"]) for span in judged} == {
        ("bonsai-rm-server", "v1")
    }
    assert {span.service for span in (request, *asked)} == {"bonsai-gateway"}


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_a_gateway_that_leaves_sends_what_it_has(workers: str) -> None:
    vllm = FakeVllm()
    await vllm.start()
    with collector() as spans:
        flags = ["--policy-url", vllm.url, "--workers", workers, "--drain-delay", "0"]
        async with gateway(*flags, "--otlp-traces-endpoint", spans.url) as served:
            for _ in range(4):
                body = {"messages": [{"role": "user", "content": "Hi"}]}
                answer: httpx.Response = await served.http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200
            served.process.send_signal(signal.SIGTERM)
            await served.ends_well()
            said = (await served.stderr).decode()
    await vllm.stop()
    assert len(spans.named("server chat tiny")) == 4
    assert all(f'"trace_id":"{span.trace_id}"' in said for span in spans.named("server chat tiny"))
