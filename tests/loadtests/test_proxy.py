"""The proxy passes answers on as they are, and breaks those that it is told to break, where it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from loadtests.fakes.__main__ import main
from loadtests.fakes.http_server import Serve, listen
from loadtests.fakes.proxy import FaultProxy
from loadtests.fakes.script import Fault, ProxyScript, VllmScript
from loadtests.fakes.vllm import FakeVllm
from loadtests.http_client import HttpClient, Reply

PATH = "/v1/chat/completions"
BODY = msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5})
STREAM = msgspec.json.encode({"messages": [], "max_tokens": 5, "stream": True})


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    server = await listen(serve, 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def before_a_fake(
    *faults: Fault, upstream: Fault | None = None
) -> AsyncIterator[tuple[str, str, FaultProxy]]:
    """The addresses of the fake and of the proxy, and the proxy."""
    fake = FakeVllm(VllmScript(faults=(upstream,) if upstream else ()))
    async with serving(fake) as direct:
        proxy = FaultProxy(ProxyScript(faults=faults), direct)
        async with serving(proxy) as url:
            yield direct, url, proxy


async def ask(url: str, body: bytes = BODY, timeout_s: float = 30.0) -> Reply:
    async with HttpClient(url, timeout_s) as http:
        return await http.send("POST", PATH, body)


async def raw(url: str, body: bytes = BODY) -> bytes:
    """All bytes of an answer, until the server ends them or resets."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    found = b""
    try:
        while data := await reader.read(65536):
            found += data
    except ConnectionResetError:
        found += b"(reset)"
    writer.close()
    return found


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_without_a_fault_nothing_changes(body: bytes) -> None:
    async with before_a_fake() as (direct, url, proxy), HttpClient(url) as http:
        expected = await ask(direct, body)
        for _ in range(3):
            reply = await http.send("POST", PATH, body)
            assert (reply.status, reply.headers, reply.body) == (200, expected.headers, expected.body)
        assert (await http.send("GET", "/v1/models")).status == 200
        assert (await http.send("GET", "/nowhere")).status == 404
        assert proxy.state.calls == 5


@pytest.mark.parametrize("after", [0, 1, 20, 150])
async def test_a_break_comes_after_so_many_bytes(after: int) -> None:
    for kind in ("reset", "garbage"):
        async with before_a_fake(Fault(kind=kind, after=after)) as (direct, url, proxy):
            whole = await ask(direct)
            found = await raw(url)
            sent = found.removesuffix(b"(reset)")
            assert sent[:after][:17] == b"HTTP/1.1 200 OK\r\n"[:after]
            assert len(sent) == after + (1024 if kind == "garbage" else 0)
            assert whole.body not in found
            assert proxy.state.faults == {kind: 1}


async def test_a_half_closed_connection_is_told_from_a_whole_answer() -> None:
    async with before_a_fake(Fault(kind="half_close", after=150)) as (_, url, _):
        assert len(await raw(url)) == 150
        assert (await ask(url)).error == "cut"


async def test_silence_in_the_middle() -> None:
    async with before_a_fake(Fault(kind="silence", after=150)) as (_, url, _):
        assert (await ask(url, timeout_s=0.3)).error == "time-out"


async def test_a_status_and_an_answer_shorter_than_its_break() -> None:
    async with before_a_fake(Fault(kind="status", status=503)) as (_, url, _):
        assert (await ask(url)).status == 503
    async with before_a_fake(Fault(kind="reset", after=1_000_000)) as (_, url, _):
        assert (await ask(url)).error is None


async def test_what_breaks_upstream_breaks_here() -> None:
    async with before_a_fake(upstream=Fault(kind="cut")) as (_, url, _):
        assert (await ask(url)).error == "cut"
    proxy = FaultProxy(ProxyScript(), "http://127.0.0.1:9")
    async with serving(proxy) as url:
        assert (await ask(url)).status == 502


async def test_its_script_is_changed_while_it_runs() -> None:
    async with before_a_fake() as (_, url, _), HttpClient(url) as http:
        script = msgspec.json.encode(ProxyScript(faults=(Fault(kind="status", status=500),)))
        assert (await http.send("PUT", "/_ctl/script", script)).status == 200
        assert (await http.send("POST", PATH, BODY)).status == 500
        assert (await http.send("PUT", "/_ctl/script", b'{"faults": [{"kind": "nan"}]}')).status == 400


@pytest.mark.parametrize(
    "words", ["proxy --port 1", "vllm --port 1 --upstream http://u", "proxy --port 1 --upstream nonsense"]
)
def test_a_command_line_that_makes_no_sense(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err
