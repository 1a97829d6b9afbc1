"""What is lost with a server in the middle of a best-of-N is sampled again by another."""

import asyncio

import pytest

from gateway.errors import UpstreamError
from tests.gateway.fakes import FakePolicy, FakeReward, piece
from tests.gateway.test_best_of_n import plan, run, texts


async def test_what_is_lost_with_a_server_is_sampled_again_by_another() -> None:
    gone = UpstreamError("gone")
    first = [[piece(0, "a"), piece(1, "half", None, tokens=9)], [piece(2, "ccc")], gone]
    again = [[piece(0, "bb"), piece(1, "dddd")]]
    policy = FakePolicy(first, more_scripts=[again], another=True)
    outcome = await run([], FakeReward(), plan(samples=4, n=4), policy)
    assert texts(outcome) == ["dddd", "ccc", "bb", "a"]
    assert outcome.selections[0].degraded is None
    assert [(call.work, call.again, call.request_id) for call in policy.calls] == [
        (4, False, "r"),
        (2, True, "r-1"),
    ]
    assert policy.bodies[1]["n"] == 2
    # 3 each for a and ccc, 9 that were lost, 3 each for the two that took their places; one prompt of 5.
    assert (outcome.usage.completion_tokens, outcome.usage.prompt_tokens) == (3 + 3 + 9 + 3 + 3, 5)


async def test_a_server_that_is_lost_after_all_has_finished_costs_no_retry() -> None:
    policy = FakePolicy([[piece(0, "a"), piece(1, "bb")], UpstreamError("gone")], another=True)
    outcome = await run([], FakeReward(), plan(samples=2), policy)
    assert (texts(outcome), outcome.selections[0].degraded) == (["bb"], None)
    assert (len(policy.calls), policy.budget_spent) == (1, 0)


async def test_with_a_seed_the_lost_are_sampled_as_they_would_have_been() -> None:
    first = [[piece(1, "b")], UpstreamError("gone")]
    more = [[[piece(0, "a")]], [[piece(0, "c"), piece(1, "d")]]]
    policy = FakePolicy(first, more_scripts=more, another=True)
    outcome = await run([], FakeReward(), plan(samples=4, n=4, upstream_body={"seed": 7}), policy)
    assert [(body["n"], body["seed"]) for body in policy.bodies] == [(4, 7), (1, 7), (2, 9)]
    assert {c.index: c.text for c in outcome.selections[0].candidates} == {0: "a", 1: "b", 2: "c", 3: "d"}


@pytest.mark.parametrize("another", [True, False])
async def test_a_server_lost_twice_leaves_what_is_there(another: bool) -> None:
    gone = UpstreamError("gone")
    policy = FakePolicy([[piece(0, "a")], gone], more_scripts=[[gone]], another=another)
    outcome = await run([], FakeReward(), plan(samples=2), policy)
    assert (texts(outcome), outcome.selections[0].degraded) == (["a"], "candidates_failed")
    assert len(policy.calls) == (2 if another else 1)


async def test_late_in_its_time_nothing_is_sampled_again() -> None:
    hold = asyncio.Event()
    policy = FakePolicy([[piece(0, "a")], hold, UpstreamError("gone")], more_scripts=[[]], another=True)
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(run([], FakeReward(), plan(samples=2, deadline=loop.time() + 1.0), policy))
    loop.call_later(0.7, hold.set)
    assert (await work).selections[0].degraded == "candidates_failed"
    assert len(policy.calls) == 1
