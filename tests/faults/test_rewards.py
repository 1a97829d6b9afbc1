"""B: the reward model is away, slow, or answers nonsense. There is never a silent pick."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from tests.faults.fakes import Behaviour, answering, hanging_up, raw, silent, vanishing
from tests.faults.world import CANARY_UPSTREAM, World, texts
from tests.gateway.fake_servers import Sample
from tests.gateway.stack import check_envelope, events

TOLD = json.dumps({"error": {"message": CANARY_UPSTREAM, "code": CANARY_UPSTREAM}}).encode()
IMPATIENT = pytest.mark.parametrize("world", [{"reward": {"timeout_s": 0.1}}], indirect=True)

BROKEN: dict[str, Behaviour] = {
    "resets": vanishing,
    "hangs up": hanging_up,
    "is black-holed": silent,
    "is no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "dies in its answer": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    **{f"says {status}": answering(TOLD, status) for status in (201, 204, 302, 401, 403, 429, 500, 503)},
    "says HTML": answering(b"<html>"),
    "says nothing": answering(b""),
    "is truncated": answering(b'{"scores": [1.0, 2.0'),
    "says a list": answering(b"[1.0, 2.0]"),
    "says a number": answering(b"1.0"),
    "says null": answering(b"null"),
    "has no scores": answering(b"{}"),
    "says far too much": answering(b'{"scores": [1.0, 2.0], "x": "' + b"x" * 2_000_000 + b'"}'),
    "is deep": answering(b"[" * 100_000),
    "is wrong UTF-8": answering(b'{"scores": [1.0, 2.0], "x": "\xff"}'),
}


@IMPATIENT
async def test_a_broken_reward_model_is_a_503_or_the_first_by_wish(world: World) -> None:
    closed, opened = {}, {}
    world.say(samples=[Sample("worse"), Sample("much better")])
    for name, behaviour in BROKEN.items():
        world.judges_do(behaviour)
        wishes: list[dict[str, Any]] = [{}, {"stream": True}]
        wishes += [wish | {"alignment": {"on_reward_failure": "first"}} for wish in wishes]
        answers = await asyncio.gather(*(world.chat(best_of=2, **wish) for wish in wishes))
        closed[name] = [
            (a.status_code, a.json()["error"]["code"], a.headers["x-should-retry"]) for a in answers[:2]
        ]
        opened[name] = [texts(answer) for answer in answers[2:]]
        assert answers[2].json()["alignment"]["degraded"] == "reward_unavailable"
    assert closed == dict.fromkeys(BROKEN, [(503, "reward_model_unavailable", "false")] * 2)
    assert opened == dict.fromkeys(BROKEN, [["worse"]] * 2)


async def test_a_reward_model_that_is_down_and_comes_back(world: World) -> None:
    for judge in world.judges:
        await judge.stop()
    check_envelope(await world.chat(best_of=2), 503, "reward_model_unavailable")
    assert (await world.http.get("/health/ready")).status_code == 503
    assert (await world.chat()).status_code == 200
    await world.heal()
    assert texts(await world.chat(best_of=2)) == ["aa"]


CANDIDATES = [Sample(text) for text in ("one", "two", "three", "four")]
RIGHT = {
    "floats": ([1.0, 4.0, 2.0, 3.0], "two", 4),
    "integers": ([1, 2, 3, 4], "four", 4),
    "huge": ([1e308, -1e308, 0, 1], "one", 4),
    "one NaN": ([1.0, float("nan"), 2.0, 0.5], "three", 3),
    "one infinite": ([float("inf"), 1.0, 2.0, 0.5], "three", 3),
    "one infinitely bad": ([float("-inf"), -1.0, -2.0, -5.0], "two", 3),
    "one null": ([None, 1.0, 0.5, 0.25], "two", 3),
    "one text": (["9.9", 1.0, 0.5, 0.25], "two", 3),
    "one truth": ([True, -1.0, -2.0, -3.0], "two", 3),
    "one list": ([[9.9], 1.0, 0.5, 0.25], "two", 3),
    "one beyond floats": ([10**400, 1.0, 0.5, 0.25], "two", 3),
    "all but one": ([None, float("nan"), "x", -7.0], "four", 1),
    "equal": ([1.0, 1.0, 1.0, 1.0], "one", 4),
    "equal at the top": ([0.0, 1.0, 1.0, 1.0], "two", 4),
    "two zeros": ([-0.0, 0.0, -1.0, -1.0], "one", 4),
}
WRONG = {
    "none": [],
    "too few": [1.0, 2.0, 3.0],
    "too many": [1.0, 2.0, 3.0, 4.0, 5.0],
    "a number": 1.0,
    "a text": "1.0",
    "an object": {"0": 1.0},
    "nested": [[1.0, 2.0, 3.0, 4.0]],
}
ALL_BAD = {
    "all NaN": [float("nan")] * 4,
    "all null": [None] * 4,
    "all texts": ["a", "b", "c", "d"],
    "all infinite": [float("inf")] * 4,
}


def scoring(scores: Any) -> Behaviour:
    """These scores for the four candidates, in whichever calls they come."""
    by_text = dict(zip([sample.text for sample in CANDIDATES], scores, strict=True))

    async def behave(request: web.Request) -> web.StreamResponse:
        asked = (await request.json())["responses"]
        answer = {"scores": [by_text[text] for text in asked], "usage": {"tokens": len(asked)}}
        return web.Response(text=json.dumps(answer), content_type="application/json")

    return behave


async def test_the_best_of_those_with_a_finite_reward_is_chosen(world: World) -> None:
    seen = {}
    world.say(samples=CANDIDATES)
    for name, (scores, _, _) in RIGHT.items():
        world.judges_do(scoring(scores))
        answer = await world.chat(best_of=4)
        record = answer.json()["alignment"]
        seen[name] = (texts(answer)[0], record["scored"])
        assert record["degraded"] == (None if record["scored"] == 4 else "rewards_invalid")
    assert seen == {name: (winner, scored) for name, (_, winner, scored) in RIGHT.items()}


async def test_a_wrong_number_of_rewards_fails_the_whole_call(world: World) -> None:
    world.say(samples=CANDIDATES)
    for name, scores in WRONG.items():
        world.judge(raw_scores=scores)
        answer = await world.chat(best_of=4)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "reward_model_unavailable"), name


async def test_no_finite_reward_at_all_is_an_error_or_the_first_by_wish(world: World) -> None:
    world.say(samples=CANDIDATES)
    for scores in ALL_BAD.values():
        world.judges_do(scoring(scores))
        check_envelope(await world.chat(best_of=4), 502, "too_few_candidates")
        answer = await world.chat(best_of=4, alignment={"on_reward_failure": "first"})
        assert (texts(answer), answer.json()["alignment"]["rewards"]) == (["one"], [None])


async def test_equal_rewards_choose_the_same_a_hundred_times(world: World) -> None:
    world.say(samples=CANDIDATES)
    world.judges_do(scoring([0.5] * 4))
    answers = await asyncio.gather(*(world.chat(best_of=4, n=2) for _ in range(100)))
    assert {tuple(texts(answer)) for answer in answers} == {("one", "two")}


async def test_a_slow_reward_model_cannot_outlast_the_deadline(world: World) -> None:
    world.judges_do(silent)
    first = {"deadline_ms": 100, "on_reward_failure": "first"}
    for stream in (False, True):
        answer = await world.chat(best_of=2, stream=stream, alignment={"deadline_ms": 100})
        check_envelope(answer, 504, "deadline_exceeded")
        assert texts(await world.chat(best_of=2, stream=stream, alignment=first)) == ["a"]


@pytest.mark.parametrize("world", [{"heartbeat_s": 0.01, "reward": {"timeout_s": 0.1}}], indirect=True)
async def test_a_reward_model_that_fails_under_heartbeats_ends_the_stream_in_an_error(world: World) -> None:
    world.judges_do(silent)
    *before, last = events((await world.chat(best_of=2, stream=True)).text)
    assert last["error"]["code"] == "reward_model_unavailable"
    assert before
    assert "[DONE]" not in before
    assert not any(choice["delta"].get("content") for chunk in before for choice in chunk["choices"])


STRANGE: list[dict[str, Any]] = [
    {"model": CANARY_UPSTREAM[:7] * 100, "version": 5},
    {"version": {"a": 1}, "usage": []},
    {"usage": {"tokens": -5}},
    {"usage": {"tokens": 10**400}},
    {"out_of_distribution": [[], {}]},
    {"out_of_distribution": "yes"},
    {"members": "x", "spread": []},
    {"model": "a\nb", "version": "\x00"},
    {"model": "\ud800", "version": "\udfff"},
]


async def test_strange_words_beside_the_rewards_cannot_break_the_answer(world: World) -> None:
    for extra in STRANGE:
        world.judge(extra=extra)
        for stream in (False, True):
            answer = await world.chat(best_of=2, stream=stream)
            assert (answer.status_code, texts(answer)) == (200, ["aa"]), extra
