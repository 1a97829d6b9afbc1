"""A and B: one of several replicas is dead, dies, hangs, refuses, is slow or is the wrong one. Clients notice
nothing before the first byte of an answer, and what still works is not asked for much more than before."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import httpx
import pytest
from aiohttp import web

from tests.faults.fakes import Behaviour, FaultyVllm, answering, hanging_up, silent, streaming, vanishing
from tests.faults.world import WAYS, World, texts, until
from tests.gateway.fake_servers import Sample, closing_chunks, event
from tests.gateway.stack import check_envelope

MOST_AMPLIFICATION = 1.1
WELL = [["aaaa" if "best_of" in name else "a"] for name in WAYS]

Answers = list[tuple[str, httpx.Response]]


async def load(
    world: World,
    requests: int,
    at_once: int,
    during: Awaitable[object] | None = None,
    ways: Sequence[str] = tuple(WAYS),
) -> Answers:
    """So many requests, the ways by turns, so many at once; what they were answered.

    Args:
        during: runs beside them; they go on until it is done, too.
    """
    answers: Answers = []
    beside = asyncio.ensure_future(during) if during is not None else None
    numbers = iter(range(10**9))

    async def keep_asking() -> None:
        while (number := next(numbers)) < requests or (beside is not None and not beside.done()):
            name = ways[number % len(ways)]
            answers.append((name, await world.chat(**WAYS[name])))

    await asyncio.gather(*(keep_asking() for _ in range(at_once)))
    if beside is not None:
        await beside
    return answers


def failures(answers: Answers) -> Counter[str]:
    """Answers that are not as good as any, by their way and status. A stream that had begun may end in an
    error event."""
    good = dict(zip(WAYS, WELL, strict=True))
    bad = [(name, answer) for name, answer in answers if answer.status_code != 200]
    bad += [
        (name, answer)
        for name, answer in answers
        if answer.status_code == 200
        and texts(answer) != good[name]
        and not (name == "stream" and texts(answer) == ["error"] and len(answer.text.split("data: ")) > 2)
    ]
    return Counter(f"{name} {answer.status_code}" for name, answer in bad)


def amplification(world: World, answers: Answers, calls_before: int) -> float:
    """Requests to generate upstream by requests of clients."""
    return (world.calls - calls_before) / len(answers)


async def home_of(world: World) -> FaultyVllm:
    """The replica that is asked first, as long as all are well and idle."""
    before = {vllm.url: vllm.calls for vllm in world.vllms}
    await world.chat()
    return next(vllm for vllm in world.vllms if vllm.calls > before[vllm.url])


SICK: dict[str, Behaviour] = {
    "resets connections": vanishing,
    "hangs up": hanging_up,
    "says 500": answering(b"{}", 500),
    "says 401": answering(b"{}", 401),
    "is overloaded": answering(b"{}", 503, {"retry-after": "30"}),
    "limits rates": answering(b"{}", 429),
    "says nonsense": answering(b"<html>"),
    "ends its streams at once": streaming([]),
}


@pytest.mark.parametrize("how", SICK)
async def test_one_sick_replica_is_not_felt(world: World, how: str) -> None:
    sick = await home_of(world)
    sick.behaviour = SICK[how]
    before, its = world.calls, sick.calls
    answers = await load(world, 120, at_once=6)
    assert sick.calls > its
    assert not failures(answers)
    assert amplification(world, answers, before) <= MOST_AMPLIFICATION


@pytest.mark.parametrize("way", WAYS)
async def test_nonsense_instead_of_an_answer_is_tried_elsewhere(world: World, way: str) -> None:
    sick = await home_of(world)
    sick.behaviour = SICK["says nonsense"]
    before = sick.calls
    assert not failures([(way, await world.chat(**WAYS[way]))])
    assert sick.calls == before + 1


async def test_one_dead_replica_is_not_felt(world: World) -> None:
    await (await home_of(world)).stop()
    assert not failures(await load(world, 100, at_once=6))


@pytest.mark.slow
async def test_one_dead_replica_is_not_felt_and_taken_back_when_it_is_there(world: World) -> None:
    dead = await home_of(world)
    await dead.stop()
    assert not failures(await load(world, 100, at_once=6))
    await dead.start()
    before = dead.calls
    answers = await load(world, 0, at_once=6, during=until(lambda: dead.calls > before, "it is asked again"))
    assert not failures(answers)


async def test_a_replica_killed_under_load_costs_no_client_anything(world: World) -> None:
    world.say(takes=lambda: 0.01)
    before = world.calls
    killed = world.vllms[0]

    async def kill() -> None:
        await until(lambda: killed.open >= 2, "it is at work")
        await killed.stop()

    answers = await load(world, 200, at_once=9, during=kill())
    assert not failures(answers)
    assert amplification(world, answers, before) <= MOST_AMPLIFICATION


async def test_a_rolling_restart_of_all_replicas_costs_no_client_anything(world: World) -> None:
    world.say(takes=lambda: 0.005)
    before = world.calls

    async def restart_all() -> None:
        for vllm in world.vllms:
            await until(lambda vllm=vllm: vllm.open >= 1, "it is at work")
            await vllm.stop()
            await vllm.start()
            calls = vllm.calls
            await until(lambda vllm=vllm, calls=calls: vllm.calls > calls, "it is asked again")

    answers = await load(world, 200, at_once=6, during=restart_all())
    assert not failures(answers)
    assert amplification(world, answers, before) <= MOST_AMPLIFICATION


@pytest.mark.parametrize("how", ["resets connections", "says 500"])
async def test_when_all_fail_nobody_is_asked_much_more(world: World, how: str) -> None:
    world.policies_do(SICK[how])
    before = world.calls
    answers = await load(world, 300, at_once=10)
    for _, answer in answers:
        check_envelope(answer, answer.status_code)
        assert answer.status_code in {502, 503}
    assert amplification(world, answers, before) <= MOST_AMPLIFICATION


async def test_when_all_are_overloaded_the_client_is_told_when_to_come_back(world: World) -> None:
    world.policies_do(answering(b"{}", 503, {"retry-after": "7"}))
    before = world.calls
    answers = await load(world, 40, at_once=4)
    for _, answer in answers:
        check_envelope(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "7"
    assert world.calls - before <= 40 + 40 * 0.1 + 20  # the budget's burst and share
    world.policies_do(None)
    assert not failures(await load(world, 8, at_once=2))


HASTY = pytest.mark.parametrize(
    "world", [{"policy": {"first_byte_timeout_s": 1.0, "timeout_s": 20}}], indirect=True
)


@HASTY
async def test_a_replica_that_accepts_and_never_answers_only_costs_its_wait(world: World) -> None:
    hung = await home_of(world)
    hung.behaviour = silent
    # Without a stream nobody can tell a long generation from none.
    answers = await load(world, 40, at_once=6, ways=["stream", "best_of", "best_of_stream"])
    assert not failures(answers)
    assert hung.aborted > 0


async def test_a_slow_replica_loses_most_of_its_work(world: World) -> None:
    world.say(takes=lambda: 0.01)
    slow = world.vllms[0]
    slow.takes = lambda: 0.2
    before = [vllm.calls for vllm in world.vllms]
    assert not failures(await load(world, 120, at_once=9))
    done = [vllm.calls - old for vllm, old in zip(world.vllms, before, strict=True)]
    assert done[0] / sum(done) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("world", [{"policy": {"name": "tiny"}}], indirect=True)
async def test_a_replica_that_serves_another_model_is_left_out(world: World) -> None:
    wrong = world.vllms[0]
    wrong.models = ["another"]
    wrong.behaviour = answering(b"{}", 404)

    def is_out() -> bool:
        return world.value("replica_ejected", kind="policy", replica=wrong.url) == 1

    await until(is_out, "it is found out")
    before = wrong.calls
    assert not failures(await load(world, 40, at_once=4))
    assert wrong.calls == before
    wrong.models = ["tiny"]
    await until(lambda: not is_out(), "it is taken back")


SAMPLES = [Sample("x"), Sample("yy"), Sample("zzz")]
THREE = b"".join(event(c) for i, sample in enumerate(SAMPLES) for c in closing_chunks("chat", i, sample))


def breaking_once(cut: int, end: Behaviour) -> Callable[[FaultyVllm], Behaviour]:
    """The next stream is cut there; all others are well."""
    breaks = [cut]

    def of(vllm: FaultyVllm) -> Behaviour:
        async def behave(request: web.Request) -> web.StreamResponse:
            if breaks:
                return await streaming([THREE[: breaks.pop()]], then=end)(request)
            vllm.behaviour = None
            return await vllm._generate(request)

        return behave

    return of


@pytest.mark.parametrize("seed", range(3))
async def test_candidates_lost_in_the_middle_are_sampled_again_elsewhere(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.say(samples=SAMPLES)
    for end in (vanishing, hanging_up):
        make = breaking_once(chance.randrange(1, len(THREE)), end)
        for vllm in world.vllms:
            vllm.behaviour = make(vllm)
        answer = await world.chat(best_of=3)
        record = answer.json()["alignment"]
        assert (record["finished"], record["scored"], record["degraded"]) == (3, 3, None)
        assert answer.json()["usage"]["completion_tokens"] >= 9


async def test_lost_candidates_keep_their_seeds(world: World) -> None:
    first = b"".join(event(chunk) for chunk in closing_chunks("chat", 1, SAMPLES[1]))
    asked: list[tuple[int, int]] = []

    async def lose_all_but_the_second(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append((body["seed"], body["n"]))
        if len(asked) == 1:
            return await streaming([first], then=vanishing)(request)
        pieces = [event(c) for i in range(body["n"]) for c in closing_chunks("chat", i, Sample("a"))]
        return await streaming([*pieces, b"data: [DONE]\n\n"])(request)

    world.policies_do(lose_all_but_the_second)
    record = (await world.chat(best_of=4, seed=7)).json()["alignment"]
    assert (record["finished"], record["degraded"]) == (4, None)
    assert asked[0] == (7, 4)
    assert sorted(asked[1:]) == [(7, 1), (9, 2)]


SPREAD = pytest.mark.parametrize("world", [{"policy": {"max_candidates_per_call": 2}}], indirect=True)


@SPREAD
async def test_candidates_spread_over_replicas_survive_the_death_of_one(world: World) -> None:
    world.vllms[0].behaviour = vanishing
    for stream in (False, True):
        answer = await world.chat(best_of=9, stream=stream)
        assert answer.status_code == 200
    assert (await world.chat(best_of=9)).json()["alignment"]["finished"] == 9


@SPREAD
async def test_leaving_ends_what_was_spread_over_replicas(world: World) -> None:
    world.policies_do(silent)
    for stream in (False, True):
        request = asyncio.create_task(world.chat(best_of=9, stream=stream))
        await until(lambda: world.load.now == 9, "all are asked")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda: world.load.now == 0, "all may stop")


@pytest.mark.parametrize("how", ["resets connections", "says 500", "says nonsense", "is overloaded"])
async def test_one_sick_reward_server_is_not_felt(world: World, how: str) -> None:
    world.judges[0].behaviour = SICK[how]
    assert not failures(await load(world, 60, at_once=4))


async def test_a_reward_server_killed_under_load_costs_no_client_anything(world: World) -> None:
    world.judge(takes=lambda: 0.01)
    killed = world.judges[0]

    async def kill() -> None:
        await until(lambda: killed.open >= 2, "it is at work")
        await killed.stop()

    assert not failures(await load(world, 100, at_once=8, during=kill()))


@pytest.mark.parametrize("world", [{"reward": {"timeout_s": 0.1}}], indirect=True)
async def test_a_reward_server_that_hangs_only_costs_its_wait(world: World) -> None:
    world.judges[0].behaviour = silent
    assert not failures(await load(world, 24, at_once=4))
