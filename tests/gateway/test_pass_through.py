"""One sample: the policy's bytes pass unchanged, its failures in the envelope. Over real sockets."""

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import check_envelope, events, running


async def test_one_sample_passes_through_unchanged() -> None:
    async with running() as stack:
        stack.vllm.raw_body = (
            b'{ "choices": [], "odd":\n1.0, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
        )
        answer = await stack.chat(temperature=0.5, user="me", best_of=1)
        assert answer.content == stack.vllm.raw_body
        assert "x-best-of" not in answer.headers
        assert answer.headers["server-timing"].startswith("queue;dur=")
        assert stack.vllm.requests[0].body == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
        }
        assert stack.rewards.requests == []


async def test_a_stream_passes_through_byte_for_byte() -> None:
    pieces = [b'data: {"choices"', b": [1]}\n", b"\nda", b"ta: x\r\n\r\n: ping\n\nda", b"ta: [DONE]\n\n"]
    async with running() as stack:
        stack.vllm.raw_stream = pieces
        answer = await stack.chat(stream=True)
        assert answer.content == b"".join(pieces)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_n_samples_pass_through_unranked_where_the_default_is_one() -> None:
    async with running() as stack:
        answer = (await stack.chat(n=3)).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "aa", "aaa"]
        assert "alignment" not in answer


@pytest.mark.parametrize("cut", [2, 3])
async def test_a_stream_that_breaks_off_ends_in_an_error_event(cut: int) -> None:
    async with running() as stack:
        stack.vllm.break_after = cut
        found = events((await stack.chat(stream=True)).text)
        assert found[-1]["error"]["type"] == "upstream_error"
        assert "[DONE]" not in found


@pytest.mark.parametrize(("trouble", "outcome"), [("break_after", "broken"), ("error_event_after", "error")])
async def test_a_stream_that_breaks_off_counts_against_its_replica(trouble: str, outcome: str) -> None:
    async with running() as stack:
        setattr(stack.vllm, trouble, 2)
        await stack.chat(stream=True)
        replica = {"kind": "policy", "replica": stack.vllm.url}
        assert stack.value("upstream_requests_total", **replica, outcome=outcome) == 1


async def test_a_stream_beyond_its_clients_deadline_says_nothing_about_its_replica() -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("ab", gate=asyncio.Event())]
        answer = await stack.chat(stream=True, alignment={"deadline_ms": 300})
        assert events(answer.text)[-1]["error"]["code"] == "deadline_exceeded"
        replica = {"kind": "policy", "replica": stack.vllm.url}
        assert stack.value("upstream_requests_total", **replica, outcome="ok")
        assert stack.value("upstream_requests_total", **replica, outcome="timeout") == 0


async def test_an_error_event_ends_the_stream_without_its_text_and_done() -> None:
    async with running() as stack:
        stack.vllm.error_event_after = 2
        answer = await stack.chat(stream=True)
        found = events(answer.text)
        assert len(found) == 3
        assert found[-1]["error"]["code"] == "upstream_error"
        assert "secret" not in answer.text


async def test_ignored_fields_are_named_and_not_forwarded() -> None:
    async with running() as stack:
        answer = await stack.chat(suffix="a*", shiny=1, store=True)
        assert answer.headers["x-ignored-fields"] == "shiny, suffix"
        assert sorted(stack.vllm.requests[0].body) == ["messages", "model"]


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (
            (400, {"message": "maximum context length is 512 tokens. /srv/secret"}, {}),
            400,
            "context_length_exceeded",
        ),
        ((404, {"message": "secret"}, {}), 404, "model_not_found"),
        ((500, "secret", {}), 502, "upstream_error"),
        ((503, "secret", {"Retry-After": "7"}), 503, "overloaded"),
        ((302, "secret", {"Location": "http://169.254.169.254/"}), 502, "upstream_error"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"best_of": 4}, {"best_of": 4, "stream": True}])
async def test_refusals_of_the_policy_are_put_into_the_envelope(
    refusal: tuple[int, Any, dict[str, str]], status: int, code: str, fields: dict[str, Any]
) -> None:
    async with running() as stack:
        stack.vllm.refusal = refusal
        answer = await stack.chat(**fields)
        check_envelope(answer, status, code)
        assert "secret" not in answer.text
        if status == 503:
            assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"choices": [', b'{"a": NaN}'])
async def test_a_200_that_is_not_json_is_a_502(body: bytes) -> None:
    async with running() as stack:
        stack.vllm.raw_body = body
        check_envelope(await stack.chat(), 502, "upstream_error")


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -5}, {"completion_tokens": 10**400}, {"prompt_tokens": True}]
)
async def test_token_counts_that_make_no_sense_pass_and_are_not_counted(usage: dict[str, Any]) -> None:
    async with running() as stack:
        stack.vllm.raw_body = json.dumps({"choices": [], "usage": usage}).encode()
        answer = await stack.chat()
        assert (answer.status_code, answer.content) == (200, stack.vllm.raw_body)
        assert (
            stack.value("tokens_total", kind="prompt") == stack.value("tokens_total", kind="completion") == 0
        )


@pytest.mark.parametrize("best_of", [1, 2])
async def test_a_stream_that_is_none_is_a_502(best_of: int) -> None:
    async with running() as stack:
        stack.vllm.raw_body = b'{"choices": []}'
        check_envelope(await stack.chat(stream=True, best_of=best_of), 502, "upstream_error")


async def test_the_other_form_of_an_error_event_ends_a_stream_too() -> None:
    async with running() as stack:
        stack.vllm.raw_stream = [b'data: {"object": "error", "message": "secret"}\n\n', b"data: [DONE]\n\n"]
        answer = await stack.chat(stream=True)
        assert [event["error"]["code"] for event in events(answer.text)] == ["upstream_error"]
        assert "secret" not in answer.text


async def test_a_stream_whose_last_blank_line_is_missing_passes() -> None:
    async with running() as stack:
        stack.vllm.raw_stream = [b"data: {}\n\nda", b"ta: [DONE]\n"]
        assert (await stack.chat(stream=True)).content == b"data: {}\n\ndata: [DONE]\n"
