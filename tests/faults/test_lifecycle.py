"""G: what comes before and after serving, in one process. tests/e2e and the workers' tests send real
signals."""

import asyncio

import pytest

from tests.faults.fakes import silent
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
