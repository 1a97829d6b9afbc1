"""The seam to vLLM, against a loopback server."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.config import PolicyConfig
from gateway.errors import DeadlineError, GatewayError, NotFoundError, UpstreamError, UpstreamUnavailableError
from gateway.policy import Call
from gateway.vllm_client import VllmPolicy, parse_models, translate_refusal
from tests.gateway.fake_servers import FakeVllm, Sample

CHAT = "/v1/chat/completions"


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm, None]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def policy(vllm: FakeVllm) -> AsyncGenerator[VllmPolicy, None]:
    client = VllmPolicy(PolicyConfig(urls=(vllm.url,)))
    yield client
    await client.close()


async def sampled(policy: VllmPolicy, n: int = 2) -> dict[int, str]:
    """All texts by index."""
    found: dict[int, str] = {}
    async for chunks in policy.sample(Call(path=CHAT, body={"n": n, "stream": True}, request_id="r", work=n)):
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            found[choice.index] = found.get(choice.index, "") + (choice.delta or {}).get("content", "")
    return found


async def test_samples_come_by_index(policy: VllmPolicy) -> None:
    assert await sampled(policy, 3) == {0: "a", 1: "aa", 2: "aaa"}


async def test_a_connection_that_died_while_idle_is_replaced_unseen(
    vllm: FakeVllm, policy: VllmPolicy
) -> None:
    assert await sampled(policy) == {0: "a", 1: "aa"}
    await vllm.stop()
    await vllm.start()
    assert await sampled(policy) == {0: "a", 1: "aa"}
    assert len(vllm.requests) == 2


@pytest.mark.parametrize("events", [0, 1, 4])
async def test_a_stream_that_breaks_off_is_an_upstream_error(
    vllm: FakeVllm, policy: VllmPolicy, events: int
) -> None:
    vllm.break_after = events
    with pytest.raises(GatewayError) as caught:
        await sampled(policy)
    assert caught.value.status in {502, 503}


async def test_an_error_event_is_an_upstream_error_without_its_text(
    vllm: FakeVllm, policy: VllmPolicy
) -> None:
    vllm.error_event_after = 3
    with pytest.raises(UpstreamError) as caught:
        await sampled(policy)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "stream",
    [
        [b"data: {not json}\n\n"],
        [b'data: {"choices": "x"}\n\n'],
        [b'data: {"choices": [{"index": "0"}]}\n\n'],
        [b'data: {"choices": [{"index": 0, "logprobs": {"content": [NaN]}}]}\n\n'],
        [b"<html></html>"],
        [],
    ],
)
async def test_a_stream_that_makes_no_sense(vllm: FakeVllm, policy: VllmPolicy, stream: list[bytes]) -> None:
    vllm.raw_stream = stream
    with pytest.raises(UpstreamError):
        await sampled(policy)


async def test_a_candidate_that_was_not_asked_for_is_an_upstream_error(
    vllm: FakeVllm, policy: VllmPolicy
) -> None:
    vllm.raw_stream = [b'data: {"choices": [{"index": 7, "text": "a"}]}\n\n']
    with pytest.raises(UpstreamError, match="not asked for"):
        await sampled(policy)


async def test_comments_and_unknown_fields_are_no_trouble(vllm: FakeVllm, policy: VllmPolicy) -> None:
    vllm.raw_stream = [
        b": ping\n\n",
        b'data: {"choices": [{"index": 0, "delta": {"content": "Hi", "new": 1}, "newer": 2}]}\r\n\r\n',
        b"data: [DONE]\n\n",
    ]
    assert await sampled(policy) == {0: "Hi"}


async def test_nobody_listening_is_unavailable(policy: VllmPolicy, vllm: FakeVllm) -> None:
    await vllm.stop()
    with pytest.raises(UpstreamUnavailableError) as caught:
        await sampled(policy)
    assert (caught.value.status, caught.value.headers()["retry-after"]) == (503, "1")
    assert not await policy.ready()
    with pytest.raises(UpstreamUnavailableError):
        await policy.models()


async def test_silence_is_a_deadline(vllm: FakeVllm) -> None:
    vllm.samples = [Sample("a", gate=asyncio.Event())]
    impatient = VllmPolicy(PolicyConfig(urls=(vllm.url,), timeout_s=0.1))
    with pytest.raises(DeadlineError):
        await sampled(impatient, 1)
    await impatient.close()
    await vllm.wait_idle()
    assert vllm.aborted == 1


ASK = Call(path=CHAT, body={"model": "m"}, request_id="r")


async def test_an_answer_that_a_leaving_server_aborted_is_none(vllm: FakeVllm, policy: VllmPolicy) -> None:
    vllm.samples = [Sample("half", finish_reason="abort")]
    with pytest.raises(UpstreamUnavailableError) as caught:
        await policy.fetch(ASK)
    assert (caught.value.status, caught.value.headers()["retry-after"]) == (503, "1")
    vllm.samples = [Sample("whole", finish_reason="length"), Sample("odd", finish_reason=None)]
    assert b"whole" in (await policy.fetch(ASK)).content


async def test_an_aborted_answer_is_another_replicas_to_give(vllm: FakeVllm) -> None:
    other = FakeVllm()
    await other.start()
    for leaving, staying in ((vllm, other), (other, vllm)):  # whichever is asked first
        leaving.samples = [Sample("half", finish_reason="abort")]
        staying.samples = [Sample("whole")]
        both = VllmPolicy(PolicyConfig(urls=(vllm.url, other.url)))
        content = (await both.fetch(ASK)).content
        await both.close()
        assert b"whole" in content
    await other.stop()
    assert len(vllm.requests + other.requests) >= 3  # one was asked again at least


async def test_readiness_is_the_policys(vllm: FakeVllm, policy: VllmPolicy) -> None:
    assert await policy.ready()
    vllm.healthy = False
    assert not await policy.ready()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"x"), (200, b'{"data": [{"name": "m"}]}'), (200, b"[]"), (500, b'{"data": []}')],
)
def test_a_model_list_that_is_none(status: int, body: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse_models(status, body)


@pytest.mark.parametrize(
    ("status", "text", "expected_status", "code", "param"),
    [
        (
            400,
            "This model's maximum context length is 512 tokens. However, ...",
            400,
            "context_length_exceeded",
            None,
        ),
        (
            400,
            "The decoder prompt is longer than the maximum model length of 64.",
            400,
            "context_length_exceeded",
            None,
        ),
        (400, "error in top_logprobs: secret", 400, "invalid_request", "top_logprobs"),
        (
            400,
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser',
            400,
            "invalid_request",
            "tools",
        ),
        (422, "secret", 400, "invalid_request", None),
        (404, "secret", 404, "model_not_found", "model"),
        (429, "secret", 503, "overloaded", None),
        (503, "secret", 503, "overloaded", None),
        (401, "secret", 502, "upstream_auth", None),
        (302, "secret", 502, "upstream_error", None),
        (500, "secret", 502, "upstream_error", None),
        (501, "secret", 400, "unsupported", None),
    ],
)
def test_refusals_become_ours_and_their_text_stays_behind(
    status: int, text: str, expected_status: int, code: str, param: str | None
) -> None:
    error = translate_refusal(status, text.encode(), "17")
    assert (error.status, error.code, error.param) == (expected_status, code, param)
    assert "secret" not in error.message
    if expected_status == 503:
        assert error.headers()["retry-after"] == "17"


def test_the_context_length_is_told() -> None:
    error = translate_refusal(400, b"This model's maximum context length is 512 tokens.", None)
    assert "512 tokens" in error.message


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [(None, "1"), ("soon", "1"), ("0", "1"), ("9999", "60"), ("²", "1"), ("9" * 5000, "1")],
)
def test_advice_to_retry_is_an_integer_within_reason(retry_after: str | None, expected: str) -> None:
    assert translate_refusal(503, b"", retry_after).headers()["retry-after"] == expected


def test_a_missing_model_is_not_found() -> None:
    assert isinstance(translate_refusal(404, b"", None), NotFoundError)


@pytest.mark.parametrize(
    "delta",
    [
        b'{"content": ["a"]}',
        b'{"content": "\xff"}',
        b'{"tool_calls": "x"}',
        b'{"tool_calls": [{"index": "0"}]}',
        b'{"tool_calls": [{"index": 0, "function": {"arguments": {"a": 1}}}]}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_a_delta_that_makes_no_sense(vllm: FakeVllm, policy: VllmPolicy, delta: bytes) -> None:
    vllm.raw_stream = [b'data: {"choices": [{"index": 0, "delta": ' + delta + b"}]}\n\n", b"data: [DONE]\n\n"]
    with pytest.raises(UpstreamError):
        await sampled(policy)


async def test_what_came_in_one_read_with_an_error_is_not_lost(vllm: FakeVllm, policy: VllmPolicy) -> None:
    vllm.raw_stream = [
        b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\ndata: {"error": {"code": 500}}\n\n'
    ]
    arrivals = policy.sample(Call(path=CHAT, body={"n": 1, "stream": True}, request_id="r"))
    assert len(await anext(arrivals)) == 1
    with pytest.raises(UpstreamError):
        await anext(arrivals)


async def test_a_last_event_without_its_blank_line_counts(vllm: FakeVllm, policy: VllmPolicy) -> None:
    vllm.raw_stream = [b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\ndata: [DONE]']
    assert await sampled(policy) == {0: "Hi"}


@pytest.mark.parametrize("body", [b"\xff", b"[" * 100_000, b'{"data": [1]}', b'{"data": 1}', b"[]"])
def test_a_list_of_models_that_makes_no_sense(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse_models(200, body)
