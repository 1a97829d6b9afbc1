"""One sample: the gateway hands on what vLLM says, byte for byte; and what it tells of itself."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.e2e.asking import MESSAGES, PROMPT, metric
from tests.e2e.commands import Served

# What differs from request to request: ids and the second.
ITS_OWN = re.compile(rb'"(id|created)": ?("[^"]*"|\d+)')

TEXT = re.compile(r'"(?:content|text)": ?"((?:[^"\\]|\\.)*)"')

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": PROMPT},
}


def said(url: str, path: str, body: dict[str, Any]) -> bytes:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60).raise_for_status()
    return ITS_OWN.sub(b"", answer.content)


def body_for(path: str, served: Served, **more: Any) -> dict[str, Any]:
    # What so small a model says first may be its end token.
    sizes = {"min_tokens": 5, "max_tokens": 30}
    return {"model": served.model, **sizes, "temperature": 0.0, **ASKED[path], **more}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("more", [{}, {"n": 1, "best_of": 1}, {"logprobs": 1}])
def test_the_bytes_are_vllms(path: str, more: dict[str, Any], served: Served) -> None:
    if "chat" in path and "logprobs" in more:
        more = {"logprobs": True, "top_logprobs": 2}
    body = body_for(path, served, **more)
    ours = said(served.url, path, body)
    assert ours == said(served.policy_url, path, {k: v for k, v in body.items() if k != "best_of"})
    assert len(ours) > 100


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_is_vllms(path: str, more: dict[str, Any], served: Served) -> None:
    """How many tokens share an event is a matter of time, so texts are joined before they are compared."""
    body = body_for(path, served, stream=True, **more)
    ours = joined(said(served.url, path, body))
    assert ours == joined(said(served.policy_url, path, body))
    text, events = ours
    assert text
    assert events[-1] == "[DONE]"


def joined(stream: bytes) -> tuple[str, list[str]]:
    """The whole text, and the events without it, those that are then like the one before left out."""
    text, events = "", [""]
    for event in stream.decode().split("\n\n"):
        text += "".join(json.loads(f'"{found}"') for found in TEXT.findall(event))
        rest = TEXT.sub("", event.removeprefix("data: "))
        events += [rest] if rest not in ("", events[-1]) else []
    return text, events


def test_tokens_pass_through(served: Served) -> None:
    body = {"model": served.model, "prompt": PROMPT}
    ours = httpx.post(f"{served.url}/tokenize", json=body)
    assert ours.json() == httpx.post(f"{served.policy_url}/tokenize", json=body).json()
    ids = {"model": served.model, "tokens": ours.json()["tokens"]}
    assert httpx.post(f"{served.url}/detokenize", json=ids).json()["prompt"] == PROMPT


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/version", "/v1/models"])
def test_it_is_well(path: str, served: Served) -> None:
    answer = httpx.get(f"{served.url}{path}")
    assert answer.status_code == 200
    assert answer.headers["x-request-id"]


def test_metrics_move(served: Served) -> None:
    def counts() -> list[float]:
        return [
            metric(served.url, "bonsai_gateway_requests_total", route="/v1/chat/completions", code="200"),
            metric(served.url, "bonsai_gateway_candidates_total"),
            metric(served.url, "bonsai_gateway_reward_gain_count"),
            metric(served.reward_url, "bonsai_rm_requests_total", route="/score", status="200") > 0,
        ]

    before = counts()
    body = {"model": served.model, "messages": MESSAGES, "max_tokens": 20, "best_of": 4}
    httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    assert [now - then for now, then in zip(counts()[:3], before, strict=False)] == [1, 4, 1]
    assert counts()[3]
