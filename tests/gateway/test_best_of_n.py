"""Sample, score, select: with fakes at both seams."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n import BestOfN, Outcome, Plan, kl_bound_nats, select
from gateway.candidates import Candidate
from gateway.errors import (
    DeadlineError,
    GatewayError,
    InvalidRequestError,
    OverloadedError,
    RewardError,
    UpstreamError,
)
from gateway.metrics import Metrics
from gateway.policy import Call, Chunk, Usage
from gateway.rewards import Question, TooLongError, Verdict
from tests.gateway.fakes import FakePolicy, FakeReward, piece

NEVER = asyncio.Event


def plan(*, samples: int, n: int = 1, prompts: int = 1, **fields: Any) -> Plan:
    """A plan for completions."""
    questions = [
        Question(messages=[{"role": "user", "content": f"q{i}"}], responses=()) for i in range(prompts)
    ]
    defaults: dict[str, Any] = {
        "path": "/v1/completions",
        "upstream_body": {},
        "request_id": "r",
        "questions": questions,
        "prefixes": [""] * prompts,
        "best_of": samples,
        "first_on_failure": False,
        "deadline": None,
    }
    return Plan(n=n, samples=samples, **{**defaults, **fields})


async def run(
    script: Sequence[Any], reward: FakeReward, the_plan: Plan, policy: FakePolicy | None = None
) -> Outcome:
    """Run a plan against a script."""
    policy = policy or FakePolicy(script)
    return await BestOfN(the_plan, policy, reward, lambda candidate: candidate.text, Metrics()).run()


def texts(outcome: Outcome) -> list[str]:
    """The chosen texts."""
    return [candidate.text for selection in outcome.selections for candidate in selection.chosen]


@given(st.lists(st.none() | st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12), st.integers(1, 12))
def test_select_takes_the_highest_rewards_and_the_lower_index_of_equals(
    rewards: list[float | None], n: int
) -> None:
    candidates = [Candidate(index, reward=reward) for index, reward in enumerate(rewards)]
    chosen = select(candidates, n)
    scored = [(reward, -index) for index, reward in enumerate(rewards) if reward is not None]
    assert [(c.reward, -c.index) for c in chosen] == sorted(scored, reverse=True)[:n]


def test_the_kl_bound_by_hand() -> None:
    # log 4 - 3/4 = 1.386294 - 0.75
    assert kl_bound_nats(4) == pytest.approx(0.636294, abs=1e-6)
    assert kl_bound_nats(1) == 0.0
    assert kl_bound_nats(0) == 0.0


async def test_the_best_are_returned_best_first() -> None:
    reward = FakeReward({"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0})
    script = [[piece(i, text) for i, text in enumerate("abcd")]]
    outcome = await run(script, reward, plan(samples=4, n=3))
    assert texts(outcome) == ["b", "d", "c"]
    selection = outcome.selections[0]
    assert (selection.degraded, selection.finished, selection.rewards) == (None, 4, [1.0, 3.0, 2.0, 3.0])
    assert (selection.reward_model, selection.reward_model_version, selection.reward_tokens) == (
        "judge",
        "v1",
        40,
    )


async def test_an_empty_answer_is_judged_like_any_other() -> None:
    reward = FakeReward({"a": 1.0, "": 2.0})
    outcome = await run([[piece(0, "a"), piece(1, "")]], reward, plan(samples=2, n=2))
    assert texts(outcome) == ["", "a"]
    assert reward.calls == [["a", ""]]
    assert outcome.selections[0].degraded is None


async def test_candidates_are_judged_while_others_still_generate() -> None:
    last = asyncio.Event()
    reward = FakeReward()
    work = asyncio.create_task(
        run([[piece(1, "bb"), piece(0, "a")], last, [piece(2, "ccc")]], reward, plan(samples=3))
    )
    await reward.asked.wait()
    assert reward.calls == [["bb", "a"]]
    last.set()
    assert texts(await work) == ["ccc"]
    assert reward.calls == [["bb", "a"], ["ccc"]]


async def test_identical_texts_are_judged_once_even_when_they_come_later() -> None:
    pause = asyncio.Event()
    reward = FakeReward()
    script = [[piece(0, "a"), piece(1, "a")], pause, [piece(2, "a"), piece(3, "bb")]]
    work = asyncio.create_task(run(script, reward, plan(samples=4, n=4)))
    await reward.asked.wait()
    pause.set()
    outcome = await work
    assert reward.calls == [["a"], ["bb"]]
    assert [c.index for c in outcome.selections[0].chosen] == [3, 0, 1, 2]
    assert outcome.selections[0].rewards == [1.0, 1.0, 1.0, 2.0]


async def test_usage_counts_every_token_received() -> None:
    total = Chunk(
        choices=[],
        usage=Usage(prompt_tokens=5, completion_tokens=12, prompt_tokens_details={"cached_tokens": 4}),
    )
    outcome = await run(
        [[piece(0, "a", tokens=5), piece(1, "b", tokens=7)], [total]], FakeReward(), plan(samples=2)
    )
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (5, 12)
    assert outcome.usage.prompt_tokens_details == {"cached_tokens": 4}


async def test_usage_of_an_aborted_run_is_summed_from_the_candidates() -> None:
    script = [[piece(0, "a", tokens=5), piece(1, "b", None, tokens=7)], UpstreamError("gone")]
    outcome = await run(script, FakeReward(), plan(samples=2))
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (5, 12)


async def test_prompts_have_their_own_candidates_and_questions() -> None:
    reward = FakeReward()
    script = [[piece(0, "a"), piece(1, "bb"), piece(2, "cccc"), piece(3, "ddd")]]
    outcome = await run(script, reward, plan(samples=2, prompts=2))
    assert texts(outcome) == ["bb", "cccc"]
    assert sorted(reward.calls) == [["a", "bb"], ["cccc", "ddd"]]
    assert outcome.usage.prompt_tokens == 10


async def test_a_prefix_is_judged_with_the_candidate() -> None:
    reward = FakeReward()
    await run([[piece(0, "a"), piece(1, "b")]], reward, plan(samples=2, prefixes=["So: "]))
    assert reward.calls == [["So: a", "So: b"]]


async def test_a_policy_that_breaks_leaves_what_finished() -> None:
    script = [[piece(0, "a"), piece(1, "bb", None)], UpstreamError("gone")]
    outcome = await run(script, FakeReward(), plan(samples=2))
    assert texts(outcome) == ["a"]
    assert outcome.selections[0].degraded == "candidates_failed"
    assert outcome.selections[0].finished == 1


async def test_a_policy_that_breaks_before_anything_finished_is_its_own_error() -> None:
    with pytest.raises(UpstreamError, match="gone") as caught:
        await run([[piece(0, "a", None)], UpstreamError("gone")], FakeReward(), plan(samples=2))
    assert caught.value.should_retry is False, "a retry would spend all of this again"


async def test_a_policy_that_did_not_begin_may_be_asked_again() -> None:
    with pytest.raises(OverloadedError, match="busy") as caught:
        await run([OverloadedError("busy")], FakeReward(), plan(samples=2))
    assert caught.value.should_retry is None


async def test_an_aborted_candidate_is_not_chosen() -> None:
    outcome = await run([[piece(0, "a"), piece(1, "long", "abort")]], FakeReward(), plan(samples=2))
    assert texts(outcome) == ["a"]
    assert outcome.selections[0].degraded == "candidates_failed"


async def test_more_than_a_server_takes_at_once_is_sampled_in_pieces() -> None:
    scripts = [[[piece(i, name * (i + 1)) for i in range(2)]] for name in "abc"]
    policy = FakePolicy(scripts[0], more_scripts=scripts[1:])
    the_plan = plan(samples=6, n=6, max_per_call=2, upstream_body={"seed": 1})
    outcome = await run([], FakeReward(), the_plan, policy)
    assert [(body["n"], body["seed"]) for body in policy.bodies] == [(2, 1), (2, 3), (2, 5)]
    assert [c.text for c in outcome.selections[0].candidates] == ["a", "aa", "b", "bb", "c", "cc"]
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (5, 18)


async def test_a_refusal_of_one_piece_refuses_all() -> None:
    refusal = InvalidRequestError("no")
    policy = FakePolicy([NEVER()], more_scripts=[[refusal]], another=True)
    with pytest.raises(InvalidRequestError, match="no"):
        await run([], FakeReward(), plan(samples=4, max_per_call=2), policy)
    assert policy.closed == 2


async def test_fewer_scored_than_n_is_a_502_that_is_not_retried() -> None:
    script = [[piece(0, "a"), piece(1, "b")]]
    with pytest.raises(UpstreamError) as caught:
        await run(script, FakeReward({"a": None}), plan(samples=2, n=2))
    assert (caught.value.code, caught.value.should_retry) == ("too_few_candidates", False)


async def test_a_reward_that_is_missing_leaves_its_candidate_out() -> None:
    outcome = await run([[piece(0, "a"), piece(1, "bb")]], FakeReward({"bb": None}), plan(samples=2))
    assert texts(outcome) == ["a"]
    assert outcome.selections[0].degraded == "rewards_invalid"


async def test_only_what_is_too_long_itself_is_left_out() -> None:
    reward = FakeReward({"bbbb": TooLongError("too long")})
    outcome = await run([[piece(0, "a"), piece(1, "bbbb"), piece(2, "cc")]], reward, plan(samples=3))
    assert texts(outcome) == ["cc"]
    assert outcome.selections[0].degraded == "candidates_too_long"
    assert reward.calls == [["a", "bbbb", "cc"], ["a"], ["bbbb"], ["cc"]]


async def test_a_batch_that_is_refused_is_asked_again_one_by_one() -> None:
    class Narrow(FakeReward):
        async def score(self, question: Question) -> Verdict:
            if len(question.responses) > 1:
                self.calls.append(list(question.responses))
                raise InvalidRequestError("too large at once")
            return await super().score(question)

    reward = Narrow()
    outcome = await run([[piece(0, "a"), piece(1, "bb")]], reward, plan(samples=2))
    assert (texts(outcome), outcome.selections[0].degraded) == (["bb"], None)
    assert reward.calls == [["a", "bb"], ["a"], ["bb"]]


async def test_a_failed_reward_call_ends_the_generation_at_once() -> None:
    policy = FakePolicy([[piece(0, "a")], NEVER()])
    with pytest.raises(RewardError) as caught:
        await run([], FakeReward({"a": RewardError("down")}), plan(samples=2), policy)
    assert caught.value.should_retry is False
    assert policy.closed == 1


async def test_first_on_failure_answers_by_index_and_says_so() -> None:
    reward = FakeReward({"a": 9.0, "bb": RewardError("down")})
    pause = asyncio.Event()
    script = [[piece(2, "a")], pause, [piece(1, "bb"), piece(0, "ccc")]]
    work = asyncio.create_task(run(script, reward, plan(samples=3, n=2, first_on_failure=True)))
    await reward.asked.wait()
    pause.set()
    outcome = await work
    assert texts(outcome) == ["ccc", "bb"]
    selection = outcome.selections[0]
    assert (selection.degraded, selection.rewards) == ("reward_unavailable", [])


async def test_first_on_failure_covers_missing_rewards_too() -> None:
    reward = FakeReward({"a": None, "b": None})
    outcome = await run([[piece(1, "b"), piece(0, "a")]], reward, plan(samples=2, first_on_failure=True))
    assert texts(outcome) == ["a"]
    assert outcome.selections[0].degraded == "reward_unavailable"


async def test_the_deadline_takes_the_best_of_those_finished_and_closes_the_policy() -> None:
    policy = FakePolicy([[piece(0, "a"), piece(1, "bb"), piece(2, "c", None, tokens=9)], NEVER()])
    deadline = asyncio.get_running_loop().time() + 0.3
    outcome = await run([], FakeReward(), plan(samples=3, deadline=deadline, reserve_s=0.1), policy)
    assert texts(outcome) == ["bb"]
    assert outcome.selections[0].degraded == "deadline"
    assert outcome.usage.completion_tokens == 15
    assert policy.closed == 1


async def test_a_deadline_before_anything_was_scored_is_a_504() -> None:
    deadline = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(DeadlineError) as caught:
        await run([NEVER()], FakeReward(), plan(samples=2, deadline=deadline))
    assert (caught.value.status, caught.value.should_retry) == (504, False)


async def test_a_reward_call_is_cancelled_at_the_deadline() -> None:
    reward = FakeReward(gates={"slow": NEVER()})
    deadline = asyncio.get_running_loop().time() + 0.1
    pause = asyncio.Event()
    script = [[piece(0, "a")], pause, [piece(1, "slow")]]
    work = asyncio.create_task(run(script, reward, plan(samples=2, deadline=deadline)))
    await reward.asked.wait()
    pause.set()
    outcome = await work
    assert texts(outcome) == ["a"]
    assert (outcome.selections[0].degraded, reward.cancelled) == ("deadline", 1)


async def test_cancelling_closes_the_policy_and_the_reward_call() -> None:
    policy = FakePolicy([[piece(0, "a")], NEVER()])
    reward = FakeReward(gates={"a": NEVER()})
    work = asyncio.create_task(run([], reward, plan(samples=2), policy))
    await reward.asked.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (policy.closed, reward.cancelled) == (1, 1)


async def test_a_greedy_run_says_so() -> None:
    outcome = await run([[piece(0, "a")]], FakeReward(), plan(samples=1, best_of=8))
    assert outcome.selections[0].degraded == "greedy"


async def test_a_bug_is_not_mistaken_for_a_failing_policy() -> None:
    class Broken(FakePolicy):
        async def sample(self, call: Call) -> Any:
            yield [piece(0, "a")]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run([], FakeReward(), plan(samples=2), Broken())


@given(st.permutations(range(5)), st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=5, max_size=5))
def test_the_choice_does_not_depend_on_the_order_of_arrival(order: list[int], rewards: list[float]) -> None:
    reward = FakeReward({f"t{i}": value for i, value in enumerate(rewards)})
    script = [[piece(i, f"t{i}")] for i in order]
    outcome = asyncio.run(run(script, reward, plan(samples=5, n=5)))
    expected = sorted(range(5), key=lambda i: (-rewards[i], i))
    assert [c.index for c in outcome.selections[0].chosen] == expected
    assert math.isfinite(sum(outcome.selections[0].rewards))


def test_errors_of_the_tree_are_gateway_errors() -> None:
    assert issubclass(TooLongError, GatewayError)


async def test_what_finished_in_the_read_in_which_the_policy_broke_is_judged() -> None:
    script = [[piece(0, "a")], UpstreamError("an event that cannot be read")]
    outcome = await run(script, FakeReward(), plan(samples=2))
    assert texts(outcome) == ["a"]
    assert outcome.selections[0].degraded == "candidates_failed"


async def test_a_bug_in_a_reward_call_is_not_mistaken_for_a_missing_reward() -> None:
    with pytest.raises(ZeroDivisionError):
        await run([[piece(0, "a")]], FakeReward({"a": ZeroDivisionError()}), plan(samples=2))


async def test_where_rewards_did_not_choose_none_are_shown() -> None:
    reward = FakeReward({"a": 1.0, "b": None})
    outcome = await run([[piece(0, "a"), piece(1, "b")]], reward, plan(samples=2, n=2, first_on_failure=True))
    assert texts(outcome) == ["a", "b"]
    assert (outcome.selections[0].degraded, outcome.selections[0].rewards) == ("reward_unavailable", [])
