"""More connections than a process may have open files: it goes on, says so, and recovers."""

from contextlib import AsyncExitStack

from tests.gateway.fake_servers import FakeVllm
from tests.gateway.processes import gateway
from tests.gateway.raw_http import GET, RawClient
from tests.gateway.stack import CHAT, check_envelope

OPEN_FILES = 256
SERVED = OPEN_FILES // 2
HEARD = SERVED + SERVED // 8
CROWD = 2 * OPEN_FILES


async def test_a_crowd_that_only_connects() -> None:
    vllm = FakeVllm()
    await vllm.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(vllm.stop)
        running = await stack.enter_async_context(
            gateway("--policy-url", vllm.url, "--drain-delay", "0", open_files=OPEN_FILES)
        )
        port = int(running.url.rsplit(":", 1)[1])
        crowd = [await RawClient.open(port) for _ in range(CROWD)]
        for unheard in crowd[HEARD:]:
            assert await unheard.rest() == b""
        last_heard = crowd[HEARD - 1]
        await last_heard.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await last_heard.answer()).status_code == 200
        await last_heard.send(GET)
        check_envelope(await last_heard.answer(), 503, "too_many_connections")
        await crowd[SERVED - 1].send(GET)
        check_envelope(await crowd[SERVED - 1].answer(), 404)
        for client in crowd[:HEARD]:
            client.writer.write_eof()
            assert await client.rest() == b""
        for client in crowd:
            await client.close()
        answer = await running.http.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}]})
        assert answer.status_code == 200
        assert await running.metric("errors_total", code="too_many_connections") == CROWD - HEARD + 1
