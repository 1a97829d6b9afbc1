"""What a best-of-N run is said to have cost, where candidates were lost or the run failed."""

from typing import Any

import pytest

from gateway.answers import Asked, Identity, body
from gateway.best_of_n import BestOfN
from gateway.errors import RewardError, UpstreamError
from gateway.metrics import Metrics
from tests.gateway.fakes import FakePolicy, FakeReward, piece
from tests.gateway.test_best_of_n import plan, run


async def test_the_record_counts_what_was_lost_too() -> None:
    first: list[Any] = [[piece(0, "a"), piece(1, "half", None, tokens=9)], UpstreamError("gone")]
    policy = FakePolicy(first, more_scripts=[[[piece(0, "bb", tokens=4)]]], another=True)
    outcome = await run([], FakeReward(), plan(samples=2), policy)
    identity = Identity(id="i", created=1, model="m", chat=False)
    asked = Asked(best_of=2, reward_model=None, return_candidates=True, include_usage=False, is_list=False)
    answer = body(identity, outcome, asked)
    counts = answer["alignment"]["usage"]
    assert counts["all_completion_tokens"] == answer["usage"]["completion_tokens"] == 3 + 9 + 4
    assert counts["selected_completion_tokens"] == 4
    assert [c["completion_tokens"] for c in answer["alignment"]["candidates"]] == [3, 4]


async def test_tokens_of_a_run_that_fails_are_counted_with_the_prompt() -> None:
    metrics = Metrics()
    policy = FakePolicy([[piece(0, "a", tokens=4), piece(1, "b", tokens=7)]])
    reward = FakeReward({"a": RewardError("down")})
    failing = BestOfN(plan(samples=2), policy, reward, lambda candidate: candidate.text, metrics)
    with pytest.raises(RewardError):
        await failing.run()
    assert failing.tokens == 5 + 4 + 7
    for kind, count in (("prompt", 5), ("completion", 4 + 7)):
        assert metrics.registry.get_sample_value("bonsai_gateway_tokens_total", {"kind": kind}) == count
