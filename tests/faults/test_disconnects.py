"""C: clients that leave at every instant, by every door, by the thousand; and one that does not read."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from gateway.config import Limits
from tests.faults.clients import Socket, connected, request_bytes
from tests.faults.fakes import silent, streaming
from tests.faults.world import CANARY_KEY, World, texts, until
from tests.gateway.fake_servers import Sample, closing_chunks, event
from tests.gateway.test_keys import key

TIGHT = Limits(
    max_best_of=8,
    max_candidates_per_request=8,
    max_concurrent_candidates=16,
    max_queue=6,
    max_queue_wait_s=0.05,
)
CONTENDED = pytest.mark.parametrize("world", [{"limits": TIGHT, "heartbeat_s": 0.004}], indirect=True)
FIELDS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"best_of": 8},
    {"best_of": 4, "stream": True},
    {"best_of": 2, "n": 2},
]


async def leave_at_random(world: World, chance: random.Random, leavers: int, at_once: int) -> None:
    """So many clients connect, ask, and reset their connections after 0 to 80 ms, a few at once."""
    left = iter(range(leavers))

    async def keep_leaving() -> None:
        for _ in left:
            async with connected(world.url) as socket:
                sent = request_bytes(**chance.choice(FIELDS))
                cut = len(sent) if chance.random() < 0.9 else chance.randrange(len(sent))
                socket.send(sent[:cut])
                await asyncio.sleep(chance.random() * 0.08)

    await asyncio.gather(*(keep_leaving() for _ in range(at_once)))


def slow_down(world: World, chance: random.Random) -> None:
    """Candidates end one by one over some 10 ms; each is judged in up to 60 ms."""

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            await asyncio.sleep(chance.random() * 0.01)
            return web.json_response({"choices": [{"index": 0, "message": {"content": "x"}}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for index in range(body.get("n") or 1):
            await asyncio.sleep(chance.random() * 0.003)
            for chunk in closing_chunks("chat", index, Sample("x" * (index + 1))):
                await response.write(event(chunk))
        await response.write(b"data: [DONE]\n\n")
        return response

    world.policies_do(generate)
    world.judge(takes=lambda: chance.random() * 0.06)


async def storm(world: World, leavers: int, seed: int) -> None:
    """So many random goodbyes under contention; then a hundred normal requests are all answered."""
    chance = random.Random(seed)
    slow_down(world, chance)
    await leave_at_random(world, chance, leavers, at_once=24)
    # It did hurt: in the queue, while candidates were generated, while they were judged.
    refusals = [world.value("rejected_total", reason=f"queue_{what}") for what in ("full", "timeout")]
    assert sum(refusals) > 0
    assert sum(vllm.aborted for vllm in world.vllms) > 0
    assert sum(judge.aborted for judge in world.judges) > 0
    await world.heal()
    await until(lambda: not world.load.now, "nothing generated for those who left")
    await until(lambda: not world.value("in_flight_requests"), "nobody served who left")
    assert world.value("candidate_slots_in_use") == world.value("queued_requests") == 0
    answers = []
    for _ in range(25):
        answers += await asyncio.gather(*(world.chat(best_of=4) for _ in range(4)))
    assert [texts(answer) for answer in answers] == [["aaaa"]] * 100
    assert world.load.most <= TIGHT.max_concurrent_candidates


@CONTENDED
async def test_a_thousand_random_goodbyes(world: World) -> None:
    await storm(world, 1000, seed=3)


@pytest.mark.slow
@CONTENDED
async def test_ten_thousand_random_goodbyes(world: World) -> None:
    await storm(world, 10_000, seed=4)


@pytest.mark.parametrize(
    "world",
    [{"keys": (key(CANARY_KEY, max_concurrent_candidates=8, requests_per_minute=100_000),)}],
    indirect=True,
)
async def test_goodbyes_cost_a_key_none_of_its_slots(world: World) -> None:
    chance = random.Random(6)
    slow_down(world, chance)
    await leave_at_random(world, chance, 300, at_once=12)
    assert world.value("rejected_total", reason="key_concurrency") > 0
    assert sum(vllm.aborted for vllm in world.vllms) > 0
    await world.heal()
    await until(lambda: not world.value("in_flight_requests"), "nobody served who left")
    for _ in range(10):
        assert texts(await world.chat(best_of=8)) == ["a" * 8]


Door = Callable[[Socket], None]
DOORS: dict[str, Door] = {
    "reset": Socket.reset,
    "close": lambda socket: socket.writer.close(),
    "half close": Socket.half_close,
}


@pytest.mark.parametrize("door", DOORS)
async def test_by_every_door_all_work_upstream_ends(world: World, door: str) -> None:
    world.policies_do(silent)
    for fields in FIELDS:
        async with connected(world.url) as socket:
            before = world.value("in_flight_requests")
            socket.send(request_bytes(**fields))
            await until(lambda: world.load.now, "the policy is asked")
            DOORS[door](socket)
            await until(lambda: not world.load.now, "the policy may stop")
            assert before == 0
    await until(lambda: not world.value("in_flight_requests"), "nobody is served")
    assert world.outcomes()["499"] == len(FIELDS)


async def test_two_hundred_goodbyes_abort_two_hundred_generations(world: World) -> None:
    world.policies_do(silent)
    requests = [asyncio.create_task(world.chat(best_of=8, stream=i % 2 == 0)) for i in range(50)]
    await until(lambda: world.load.now == 400, "all generate")
    chance = random.Random(5)
    chance.shuffle(requests)
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    await until(lambda: world.load.now == 0, "none generates")
    assert sum(vllm.aborted for vllm in world.vllms) == 50


async def test_leaving_while_the_body_is_sent(world: World) -> None:
    sent = request_bytes(best_of=4)
    before = world.calls
    for cut in range(1, len(sent), 29):
        async with connected(world.url) as socket:
            socket.send(sent[:cut])
            await socket.writer.drain()
    await until(lambda: not world.value("in_flight_requests"), "nobody is served")
    assert world.calls == before


async def test_leaving_while_token_ids_are_turned_into_text(world: World) -> None:
    for vllm in world.vllms:
        vllm.detokenize_hold.clear()
        vllm.arrived.clear()
    request = asyncio.create_task(world.complete(prompt=[72, 105], best_of=2))
    await until(lambda: any(vllm.open for vllm in world.vllms), "the policy is asked")
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await until(lambda: not any(vllm.open for vllm in world.vllms), "the policy may stop")


async def test_an_answer_may_be_left_half_read(world: World) -> None:
    world.policies_do(streaming([b"data: {}\n\n" * 10_000, b"data: [DONE]\n\n"]))
    for stream in (False, True):
        for _ in range(10):
            async with connected(world.url, limit=1024) as socket:
                socket.send(request_bytes(stream=stream))
                await socket.status()


async def test_many_requests_in_a_row_on_one_connection_and_then_goodbye(world: World) -> None:
    async with connected(world.url) as socket:
        socket.send(request_bytes(best_of=2) * 40)
        assert await socket.status() == 200


async def test_a_reader_that_does_not_read_holds_little_and_hinders_nobody(world: World) -> None:
    piece = b'data: {"choices": [], "x": "' + b"x" * 2**18 + b'"}\n\n'
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if not (await request.json()).get("stream"):
            return web.json_response({"choices": []})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(piece)
            sent += len(piece)
            await asyncio.sleep(0)

    world.policies_do(flood)
    async with connected(world.url, limit=1024) as socket:
        socket.send(request_bytes(stream=True))
        assert await socket.status() == 200
        before = -1
        while sent > before:
            before = sent
            for _ in range(10):
                assert (await world.chat()).status_code == 200
        assert sent < 24 * 2**20
    await until(lambda: not world.load.now, "the policy may stop")
