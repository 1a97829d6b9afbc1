"""The seam to tracing: without an endpoint nothing is recorded, and nothing of OpenTelemetry is loaded."""

import asyncio
import os
import subprocess
import sys

import pytest

from gateway import tracing
from gateway.tracing import NO_SPAN, under
from tests.gateway.stack import running

LOADED = """
import sys
from gateway import __main__, supervisor, worker
from gateway.api_server import create_app
from gateway.config import GatewayConfig, PolicyConfig
policies = (PolicyConfig(urls=("http://127.0.0.1:1",)),)
create_app(GatewayConfig(policies=policies, otlp_traces_endpoint=%r))
print(sum(name.split(".")[0] == "opentelemetry" for name in sys.modules))
"""


@pytest.mark.parametrize(("endpoint", "is_loaded"), [(None, False), ("http://127.0.0.1:1/v1/traces", True)])
def test_opentelemetry_is_loaded_only_for_an_endpoint(endpoint: str | None, is_loaded: bool) -> None:
    command = [sys.executable, "-c", LOADED % endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 0) is is_loaded


def test_without_opentelemetry_an_endpoint_is_one_line_and_exit_code_2() -> None:
    """As in an environment that was made without the extra."""
    hide = (
        "import sys; sys.modules['opentelemetry'] = None; from gateway.__main__ import main; sys.exit(main())"
    )
    flags = [
        "--port",
        "0",
        "--policy-url",
        "http://127.0.0.1:1",
        "--otlp-traces-endpoint",
        "http://127.0.0.1:1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", hide, *flags], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "pip install 'bonsai-gateway[tracing]'" in line


def test_a_span_that_nobody_records_does_nothing() -> None:
    with NO_SPAN.child("part", {"a": 1}, client=True) as span:
        span.name("other")
        span.set({"a": 1})
        span.event("retry", {})
        span.fail("error")
        span.end()
    assert span is NO_SPAN
    assert (span.recording, span.trace_id, span.exemplar, span.headers()) == (False, None, None, {})
    with pytest.raises(ZeroDivisionError), span:
        raise ZeroDivisionError


async def test_what_is_done_for_a_request_finds_its_span() -> None:
    class Marked(tracing.Span):
        """One that can be told from others."""

    async def at_work() -> tracing.Span:
        return tracing.current()

    mine = Marked()
    with under(mine):
        task = asyncio.create_task(at_work())
        assert tracing.current() is mine
    assert tracing.current() is NO_SPAN
    assert await task is mine


async def test_without_an_endpoint_no_trace_is_forwarded_or_answered() -> None:
    async with running() as stack:
        trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        assert (await stack.chat(best_of=2, headers=trace)).status_code == 200
        for call in (*stack.vllm.requests, *stack.rewards.requests):
            assert "traceparent" not in call.headers
        metrics = await stack.http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert "# {" not in metrics.text
    assert metrics.text.endswith("# EOF\n")


def test_a_call_is_named_by_what_is_done() -> None:
    names = [tracing.operation(path) for path in ("/v1/chat/completions", "/v1/completions", "/score")]
    assert names == ["chat", "text_completion", "score"]
