"""The fake vLLM server answers by its script, fails by its script, and remembers."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from loadtests.client import understand
from loadtests.fakes.http_server import Call
from loadtests.fakes.records import Record, State
from loadtests.fakes.script import Fault, Kind, VllmScript
from loadtests.fakes.vllm import FakeVllm, shape_of
from loadtests.http_client import HttpClient, Reply, now
from tests.loadtests.fakes.conftest import Serving

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


async def ask(http: HttpClient, **fields: Any) -> Reply:
    body = {"model": "fake", "messages": MESSAGES, **fields}
    return await http.send("POST", CHAT, msgspec.json.encode(body), {"x-request-id": "abc"})


@pytest.mark.parametrize(
    ("path", "fields", "lengths", "reasons"),
    [
        (CHAT, {}, (4,), ("stop",)),
        (CHAT, {"n": 3}, (4, 6, 8), ("stop",) * 3),
        (CHAT, {"n": 2, "max_tokens": 4}, (4, 4), ("stop", "length")),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 2}, (2,), ("length",)),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, (4, 6, 8, 10), ("stop",) * 4),
        ("/v1/completions", {"prompt": [1, 2, 3]}, (4,), ("stop",)),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, (4, 6), ("stop",) * 2),
    ],
)
def test_what_a_request_gets(
    path: str, fields: dict[str, Any], lengths: tuple[int, ...], reasons: tuple[str, ...]
) -> None:
    shape = shape_of(path, fields, VllmScript(tokens=4, tokens_step=2))
    assert (shape.lengths, shape.reasons, shape.chat) == (lengths, reasons, "chat" in path)


async def test_whole_and_streamed_answers(serving: Serving) -> None:
    fake = FakeVllm(VllmScript(tokens=5, tokens_step=1, interval_ms=1))
    async with serving(fake) as http:
        whole = understand(await ask(http, n=2), streamed=False)
        streamed = understand(
            await ask(http, n=2, stream=True, stream_options={"include_usage": True}), streamed=True
        )
        assert (whole.error, streamed.error) == (None, None)
        assert whole.tokens == streamed.tokens == 5 + 6
    for record in fake.records:
        assert (record.path, record.request_id, record.prompt) == (CHAT, "abc", "Hi")
        assert record.first_at is not None
        assert record.candidates_at is not None
        assert record.ended_at is not None
        assert record.began_at <= record.first_at <= record.candidates_at <= record.ended_at <= now()
        assert record.aborted_at is None


@pytest.mark.parametrize(
    ("kind", "whole", "streamed"),
    [
        ("status", "status 503", "status 503"),
        ("reset", "reset", "stream cut"),
        ("cut", "cut", "stream cut"),
        ("error_event", "status 500", "error event"),
        ("delay", None, None),
    ],
)
async def test_faults(serving: Serving, kind: Kind, whole: str | None, streamed: str | None) -> None:
    fake = FakeVllm(VllmScript(faults=(Fault(kind=kind, status=503, ms=1),)))
    async with serving(fake) as http:
        assert understand(await ask(http), streamed=False).error == whole
        assert understand(await ask(http, stream=True), streamed=True).error == streamed
    assert fake.state == State(calls=2, faults={kind: 2})


class Watched(FakeVllm):
    """Says when it works, and when it has stopped."""

    def __init__(self, script: VllmScript) -> None:
        super().__init__(script)
        self.began, self.stopped = asyncio.Event(), asyncio.Event()

    async def work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        self.began.set()
        try:
            await super().work(call, body, record, fault)
        finally:
            self.stopped.set()


async def test_a_caller_that_leaves_is_seen(serving: Serving) -> None:
    fake = Watched(VllmScript(delay_ms=60_000))
    async with serving(fake) as http:
        asking = asyncio.create_task(ask(http))
        await asyncio.wait_for(fake.began.wait(), 30)
        assert fake.state.open == 1
        left_at = now()
        asking.cancel()
        await asyncio.wait_for(fake.stopped.wait(), 30)
    assert (fake.state.open, fake.state.aborted) == (0, 1)
    aborted_at = fake.records[0].aborted_at
    assert aborted_at is not None
    assert aborted_at >= left_at
    assert fake.records[0].first_at is None


async def test_the_control_endpoints(serving: Serving) -> None:
    async with serving(FakeVllm(VllmScript(tokens=3))) as http:
        assert understand(await ask(http), streamed=False).tokens == 3
        assert (await http.send("PUT", "/_ctl/script", b'{"tokens": 7}')).status == 200
        assert understand(await ask(http), streamed=False).tokens == 7
        script = json.loads((await http.send("GET", "/_ctl/script")).body)
        assert script["tokens"] == 7
        assert json.loads((await http.send("GET", "/_ctl/state")).body)["calls"] == 2
        records = msgspec.json.decode((await http.send("GET", "/_ctl/records")).body, type=list[Record])
        assert len(records) == 2
        await http.send("DELETE", "/_ctl/records")
        assert (await http.send("GET", "/_ctl/records")).body == b"[]"


@pytest.mark.parametrize("script", [b'{"tokens": 0}', b"{", b"\xff", b'{"faults": [{"kind": "nan"}]}'])
async def test_a_wrong_script_changes_nothing(serving: Serving, script: bytes) -> None:
    fake = FakeVllm(VllmScript(tokens=3))
    async with serving(fake) as http:
        reply = await http.send("PUT", "/_ctl/script", script)
    assert reply.status == 400
    assert fake.script == VllmScript(tokens=3)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/tokenize", 400),
        ("GET", "/v1/models", 200),
        ("GET", "/health", 200),
        ("GET", "/health/ready", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/score", 404),
        ("GET", "/_ctl/nothing", 404),
        ("POST", CHAT, 400),
    ],
)
async def test_paths(serving: Serving, method: str, path: str, status: int) -> None:
    async with serving(FakeVllm(VllmScript())) as http:
        assert (await http.send(method, path, b"[]" if method == "POST" else b"")).status == status


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"messages": MESSAGES}, 3 + 2 + 3 + 1),
        ({"messages": [{"role": "user"}]}, 3),
        ({"prompt": "four words are here"}, 4),
        ({}, 0),
    ],
)
async def test_tokens_are_words_and_asking_for_them_is_no_call(
    serving: Serving, body: dict[str, Any], count: int
) -> None:
    fake = FakeVllm(VllmScript(faults=(Fault(kind="reset"),)))
    async with serving(fake) as http:
        reply = await http.send("POST", "/tokenize", msgspec.json.encode(body))
    assert json.loads(reply.body)["count"] == count
    assert fake.state.calls == 0
