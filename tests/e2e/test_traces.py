"""One request is one trace through a real vLLM too: its spans hang under the gateway's call, and count what
the answer counts."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.collector import SpanSeen, collector
from tests.e2e.asking import MESSAGES, check_record
from tests.e2e.commands import gateway_up
from tests.e2e.conftest import Ladder

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BEST_OF = 4
WISHES = {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "n": 1}
LATENCIES = {
    *("time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode"),
    *("time_in_model_inference", "e2e"),
}
ENVIRONMENT = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}


def asked_and_traced(ladder: Ladder, folder: Path) -> tuple[dict[str, Any], list[SpanSeen]]:
    """The answer to a traced request, and all that the three servers have sent when they have ended."""
    with collector() as spans:
        traces = f"--otlp-traces-endpoint {spans.url}"
        more = ["--vllm-args", traces, "--reward-args", traces, "--gateway-args", traces]
        with gateway_up(ladder.sft, ladder.reward, folder, *more, variables=ENVIRONMENT) as served:
            body = {"model": served.model, "messages": MESSAGES, "best_of": BEST_OF, **WISHES}
            headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
            answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    return answer.raise_for_status().json(), spans.spans


def test_a_request_is_one_trace_through_gateway_vllm_and_reward_server(
    ladder: Ladder, tmp_path: Path
) -> None:
    answer, spans = asked_and_traced(ladder, tmp_path)
    check_record(answer["alignment"], best_of=BEST_OF, n=1)
    trace = [span for span in spans if span.trace_id == TRACE_ID]
    by_id = {span.span_id: span for span in trace}
    [request] = [span for span in trace if span.parent_id not in by_id]
    assert (request.name, request.parent_id) == (f"server chat {ladder.sft.name}", SPAN_ID)
    assert not any(span.is_error for span in trace)

    [asked] = [span for span in trace if span.name == f"client chat {ladder.sft.name}"]
    assert asked.parent_id == request.span_id
    # A span for each candidate; what else vLLM sends is about its own start, and a trace of its own.
    sampled = [span for span in spans if span.name == "server llm_request"]
    assert len(sampled) == BEST_OF
    assert {(span.trace_id, span.parent_id) for span in sampled} == {(TRACE_ID, asked.span_id)}
    for span in sampled:
        assert span.attributes["gen_ai.usage.prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert {name: span.attributes[f"gen_ai.request.{name}"] for name in WISHES} == pytest.approx(WISHES)
        assert {name for name in LATENCIES if span.attributes[f"gen_ai.latency.{name}"] >= 0} == LATENCIES
    tokens = sum(span.attributes["gen_ai.usage.completion_tokens"] for span in sampled)
    assert tokens == answer["alignment"]["usage"]["all_completion_tokens"]
    assert tokens == request.attributes["gen_ai.usage.output_tokens"]

    judged = [span for span in trace if span.name == f"server score {ladder.reward.name}"]
    callers = [by_id[span.parent_id] for span in judged]
    # Candidates that end together are judged by one call.
    assert sum(caller.attributes["bonsai.texts"] for caller in callers) == BEST_OF
    assert {caller.name for caller in callers} == {"client score"}
    assert {caller.parent_id for caller in callers} == {request.span_id}
    assert {span.service for span in (request, asked, *callers)} == {"bonsai-gateway"}
    assert {span.service for span in judged} == {"bonsai-rm-server"}
