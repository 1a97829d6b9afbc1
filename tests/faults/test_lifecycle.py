"""G: what comes before and after serving, in one process. tests/e2e and the workers' tests send real
signals."""

import asyncio
import random

import pytest

from tests.faults.clients import connected, request_bytes
from tests.faults.fakes import silent
from tests.faults.test_replicas import failures, load
from tests.faults.world import WAYS, World, texts, until
from tests.gateway.stack import check_envelope, events


async def test_it_lives_before_what_is_behind_it_and_becomes_ready_with_it(world: World) -> None:
    for order in (world.vllms, world.judges):
        for server in world.everyone:
            await server.stop()
        assert (await world.http.get("/health/live")).status_code == 200
        check_envelope(await world.http.get("/health/ready"), 503, "not_ready")
        for server in order:
            await server.start()
        check_envelope(await world.http.get("/health/ready"), 503, "not_ready")
        await world.heal()
        assert (await world.http.get("/health/ready")).status_code == 200


async def test_leaving_finishes_what_is_under_way(world: World) -> None:
    world.say(takes=lambda: 0.3)
    asked = [asyncio.create_task(world.chat(**way)) for way in WAYS.values() for _ in range(5)]
    await until(lambda: world.load.now == 50, "all generate")
    await world.leave()
    answers = await asyncio.gather(*asked)
    expected = [["aaaa" if "best_of" in name else "a"] for name in WAYS for _ in range(5)]
    assert [texts(answer) for answer in answers] == expected


@pytest.mark.parametrize("world", [{"heartbeat_s": 0.01}], indirect=True)
async def test_leaving_tells_those_who_wait_for_ever(world: World) -> None:
    world.policies_do(silent)
    asked = [asyncio.create_task(world.chat(**way)) for way in WAYS.values()]
    await until(lambda: world.load.now == 10, "all generate")
    await world.leave()
    answers = dict(zip(WAYS, await asyncio.gather(*asked), strict=True))
    for way in ("whole", "stream", "best_of"):
        check_envelope(answers[way], 503, "stopping")
    *beats, last = events(answers["best_of_stream"].text)
    assert last["error"]["code"] == "stopping"
    assert "[DONE]" not in beats
    assert world.load.now == 0


async def test_reloads_under_load_cost_no_client_anything(world: World) -> None:
    world.say(takes=lambda: 0.002)
    chance = random.Random(1)

    async def reload_often() -> None:
        for count in (1, 3, 2, 1, 2, 3, 1, 3):
            served = sum(vllm.calls for vllm in world.vllms)
            await world.reload(chance.sample(world.vllms, count))
            await until(lambda served=served: world.calls > served + 10, "requests are served")

    assert not failures(await load(world, 50, at_once=8, during=reload_often()))
    await world.reload(world.vllms)


async def test_whoever_was_refused_or_left_holds_no_configuration_that_was_replaced(world: World) -> None:
    dropped, *kept = world.vllms
    await load(world, 30, at_once=10)
    assert dropped.connections
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        assert (await world.chat(headers=headers)).status_code == 415
    assert (await world.chat(n="four")).status_code == 400
    async with connected(world.url) as socket:
        socket.send(request_bytes(headers={"content-length": "99999999"}))
        assert await socket.status() == 413
    async with connected(world.url) as socket:
        socket.send(request_bytes()[:-5])
        await until(lambda: world.value("in_flight_requests"), "it has begun")
    await world.reload(kept)
    await until(lambda: not dropped.connections, "nobody needs the old configuration")
    await world.reload(world.vllms)
