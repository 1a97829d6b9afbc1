"""E: more than it can take. Every request is answered, what is refused at once, and nothing is lost."""

import asyncio
import random
from collections import Counter

import httpx
import pytest

from gateway.config import Limits
from tests.faults.fakes import silent
from tests.faults.world import CANARY_KEY, World, texts, until
from tests.gateway.stack import check_envelope

SMALL = Limits(
    max_best_of=8,
    max_candidates_per_request=8,
    max_concurrent_candidates=8,
    max_queue=8,
    max_queue_wait_s=0.1,
)
PATIENT = Limits(
    max_best_of=8,
    max_candidates_per_request=8,
    max_concurrent_candidates=8,
    max_queue=8,
    max_queue_wait_s=60,
)


def is_refusal(answer: httpx.Response) -> bool:
    """Checked to be a proper one."""
    if answer.status_code == 200:
        return False
    check_envelope(answer, 503, "overloaded")
    assert answer.headers["retry-after"].isdigit()
    return True


@pytest.mark.parametrize("world", [{"limits": SMALL}], indirect=True)
@pytest.mark.parametrize("times", [3, 10])
async def test_beyond_capacity_everyone_is_answered(world: World, times: int) -> None:
    # 8 slots that are held for 20 ms serve 400 samples a second; 1, 2 and 4 samples are asked for at a time.
    world.say(takes=lambda: 0.02)
    chance = random.Random(times)
    asked: list[asyncio.Task[httpx.Response]] = []
    sizes: list[int] = []
    while len(asked) < 240 + 20 * times:
        sizes.append(chance.choice([1, 2, 4]))
        asked.append(asyncio.create_task(world.chat(best_of=sizes[-1])))
        await asyncio.sleep(chance.expovariate(170 * times))
    answers = await asyncio.gather(*asked)
    refused = [is_refusal(answer) for answer in answers]
    for size, answer, no in zip(sizes, answers, refused, strict=True):
        assert no or texts(answer) == ["a" * size]
    assert 0 < sum(refused) < len(refused)
    assert world.load.most == 8
    reasons = sum(world.value("rejected_total", reason=reason) for reason in ("queue_full", "queue_timeout"))
    assert reasons == sum(refused)


@pytest.mark.parametrize("world", [{"limits": PATIENT}], indirect=True)
async def test_a_full_queue_refuses_at_once_and_probes_are_not_held_up(world: World) -> None:
    world.policies_do(silent)
    held = [asyncio.create_task(world.chat()) for _ in range(8)]
    await until(lambda: world.load.now == 8, "all slots are taken")
    waiting = [asyncio.create_task(world.chat(best_of=2)) for _ in range(8)]
    await until(lambda: world.value("queued_requests") == 8, "the queue is full")
    answers = await asyncio.gather(*(world.chat(best_of=size) for size in [1, 2, 8] * 40))
    assert [is_refusal(answer) for answer in answers] == [True] * 120
    for path in ("/health", "/health/ready", "/metrics", "/v1/models", "/version"):
        assert (await world.http.get(path)).status_code == 200
    assert not any(task.done() for task in held + waiting)
    for task in held + waiting:
        task.cancel()
    await asyncio.gather(*held, *waiting, return_exceptions=True)


@pytest.mark.parametrize("world", [{"limits": SMALL}], indirect=True)
async def test_who_waited_too_long_never_reaches_the_policy(world: World) -> None:
    world.policies_do(silent)
    held = asyncio.create_task(world.chat(best_of=8))
    await until(lambda: world.load.now == 8, "all slots are taken")
    before = world.calls
    answers = await asyncio.gather(*(world.chat(best_of=4) for _ in range(8)))
    assert [is_refusal(answer) for answer in answers] == [True] * 8
    assert world.value("rejected_total", reason="queue_timeout") == 8
    assert world.calls == before
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


@pytest.mark.parametrize("world", [{"limits": SMALL}], indirect=True)
async def test_after_the_rush_everything_is_served_again(world: World) -> None:
    world.say(takes=lambda: 0.01)
    for _ in range(3):
        rush = await asyncio.gather(*(world.chat(best_of=4) for _ in range(60)))
        assert Counter(is_refusal(answer) for answer in rush)[True] > 0
        for _ in range(5):
            assert texts(await world.chat(best_of=8)) == ["a" * 8]


async def test_fifty_scrapes_at_once_and_the_serving_goes_on(world: World) -> None:
    scrapes = [world.http.get("/metrics") for _ in range(50)]
    chats = [world.chat(best_of=2) for _ in range(50)]
    answers = await asyncio.gather(*scrapes, *chats)
    assert [answer.status_code for answer in answers] == [200] * 100


async def test_names_by_the_thousand_make_no_series(world: World) -> None:
    async def name_things(number: int) -> None:
        await world.chat(model=f"{CANARY_KEY}-{number}")
        await world.http.get(f"/{CANARY_KEY}/{number}")
        await world.http.get(f"/v1/models/{number}")
        await world.http.request(["PUT", "PATCH"][number % 2], "/v1/models")
        await world.chat(**{f"odd_{number}": 1}, headers={f"x-odd-{number}": "1"})

    await asyncio.gather(*(name_things(number) for number in range(5)))
    before = world.metrics.render().count(b"\n")
    await asyncio.gather(*(name_things(number) for number in range(60)))
    assert world.metrics.render().count(b"\n") == before
