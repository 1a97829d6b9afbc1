"""The seam to reward servers, against a loopback server."""

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.config import RewardConfig, RewardKind
from gateway.errors import GatewayError, InvalidRequestError, RewardError, RewardOverloadedError
from gateway.reward_clients import MAX_ANSWER_BYTES, RewardReplicas
from gateway.rewards import Question, RewardModel, TooLongError
from tests.gateway.fake_servers import FakeRewardServer
from tests.gateway.replicas_world import Log

MESSAGES = [{"role": "user", "content": "Hi"}]


def question(*responses: str, **fields: Any) -> Question:
    """A question about these responses."""
    return Question(messages=MESSAGES, responses=responses, **fields)


@pytest.fixture
async def server() -> AsyncGenerator[FakeRewardServer, None]:
    fake = FakeRewardServer()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def reward(server: FakeRewardServer) -> AsyncGenerator[RewardModel, None]:
    client = RewardReplicas(RewardConfig(urls=(server.url,), timeout_s=2.0))
    yield client
    await client.close()


async def test_score_asks_once_and_reads_the_whole_answer(
    server: FakeRewardServer, reward: RewardModel
) -> None:
    server.extra = {"out_of_distribution": [0.1, 0.2], "spread": [0.5, None]}
    verdict = await reward.score(
        question("a", "bb", model="judge", ensemble="worst", objectives={"kind": 2.0})
    )
    assert list(verdict.rewards) == [1.0, 2.0]
    assert (verdict.tokens, verdict.model, verdict.version) == (20, "judge", "v1")
    assert verdict.out_of_distribution == [0.1, 0.2]
    assert verdict.spread == [0.5, None]
    assert server.requests[0].body == {
        "model": "judge",
        "messages": MESSAGES,
        "responses": ["a", "bb"],
        "ensemble": "worst",
        "objectives": {"kind": 2.0},
    }


@pytest.mark.parametrize("spread", [[0.5], 0.5, "wide", {"a": 1}])
async def test_a_spread_of_another_shape_is_none(
    server: FakeRewardServer, reward: RewardModel, spread: Any
) -> None:
    server.extra = {"spread": spread}
    assert (await reward.score(question("a", "bb"))).spread is None


async def test_what_was_not_asked_for_is_not_sent(server: FakeRewardServer, reward: RewardModel) -> None:
    server.extra = {"out_of_distribution": True}
    verdict = await reward.score(question("a"))
    assert sorted(server.requests[0].body) == ["messages", "responses"]
    assert verdict.out_of_distribution == [True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None, "3", True, [1], 10**400])
async def test_a_reward_that_is_no_finite_number_is_none(
    server: FakeRewardServer, reward: RewardModel, bad: Any
) -> None:
    server.rewards = {"a": bad}
    assert list((await reward.score(question("a", "bb"))).rewards) == [None, 2.0]


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0], {"0": 1.0}, "12", 3])
async def test_a_wrong_count_fails_the_call(
    server: FakeRewardServer, reward: RewardModel, scores: Any
) -> None:
    server.raw_scores = scores
    with pytest.raises(RewardError) as caught:
        await reward.score(question("a", "bb"))
    assert (caught.value.status, caught.value.code) == (503, "reward_model_unavailable")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, {"error": {"message": "secret"}}, RewardError),
        (503, "busy", RewardOverloadedError),
        (429, {"error": {"code": "queue_full"}}, RewardOverloadedError),
        (302, "", RewardError),
        (200, [1.0], RewardError),
        (400, {"error": {"code": "context_length_exceeded"}}, TooLongError),
        (400, {"error": {"message": "This model's maximum context length is 8", "code": 400}}, TooLongError),
        (400, {"error": {"code": "invalid"}}, InvalidRequestError),
        (404, {"error": "secret"}, RewardError),
    ],
)
async def test_refusals_are_translated(
    server: FakeRewardServer, reward: RewardModel, status: int, body: Any, kind: type[GatewayError]
) -> None:
    server.refusal = (status, body)
    with pytest.raises(GatewayError) as caught:
        await reward.score(question("a"))
    assert type(caught.value) is kind
    assert "secret" not in caught.value.message


async def test_a_model_that_the_server_does_not_know_is_the_fault_of_who_named_it(
    server: FakeRewardServer, reward: RewardModel
) -> None:
    server.refusal = (404, {"error": {"code": "model_not_found"}})
    with pytest.raises(InvalidRequestError):
        await reward.score(question("a", model="the-clients"))
    for name in (None, "the-operators"):
        configured = RewardReplicas(RewardConfig(urls=(server.url,), name=name))
        with pytest.raises(RewardError):
            await configured.score(question("a"))
        await configured.close()


async def test_a_server_that_is_gone_or_silent_is_unavailable(server: FakeRewardServer) -> None:
    server.hold = asyncio.Event()
    impatient = RewardReplicas(RewardConfig(urls=(server.url,), timeout_s=0.1))
    with pytest.raises(RewardError):
        await impatient.score(question("a"))
    await server.wait_idle()
    assert server.aborted == 1
    await server.stop()
    with pytest.raises(RewardError):
        await impatient.score(question("a"))
    assert not await impatient.ready()
    await impatient.close()


@pytest.mark.parametrize("kind", ["score", "pooling"])
@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        (429, "overloaded"),
        (503, "overloaded"),
        (500, "error"),
        ("silent", "timeout"),
        ("gone", "unreachable"),
    ],
)
async def test_what_a_failure_says_about_the_replica(
    server: FakeRewardServer, kind: RewardKind, trouble: int | str, outcome: str
) -> None:
    log = Log()
    config = RewardConfig(urls=(server.url,), name="rm", kind=kind, timeout_s=0.2)
    client = RewardReplicas(config, observer=log)
    if trouble == "gone":
        await server.stop()
    elif trouble == "silent":
        server.hold.clear()
    else:
        server.refusal = (int(trouble), {})
    with pytest.raises(RewardError):
        await client.score(question("a", "bb"))
    server.hold.set()
    await client.close()
    assert log.lines == [("took", server.url, 2), ("gave back", server.url, 2, outcome)]


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


async def test_get_reward_takes_rendered_texts_and_control_tokens_in_them_stay_text(
    server: FakeRewardServer,
) -> None:
    config = RewardConfig(urls=(server.url,), name="rm", kind="get_reward", offset=0.5, template=TEMPLATE)
    client = RewardReplicas(config)
    server.rewards = {"<user>Hi<assistant>bb": float("nan")}
    verdict = await client.score(question("a", "bb", "<|im_end|>"))
    texts = ["<user>Hi<assistant>a", "<user>Hi<assistant>bb", "<user>Hi<assistant><\\|im_end|>"]
    assert server.requests[0].body == {"query": texts, "prompts": texts}
    assert list(verdict.rewards) == [19.5, None, len(texts[2]) - 0.5]
    assert (verdict.model, verdict.tokens) == ("rm", 0)
    assert await client.ready()
    with pytest.raises(InvalidRequestError):
        await client.score(question("a", ensemble="worst"))
    await server.stop()
    assert not await client.ready()
    await client.close()


async def test_a_conversation_that_the_template_does_not_take_is_a_refusal(server: FakeRewardServer) -> None:
    template = "{{ raise_exception('no') }}"
    client = RewardReplicas(RewardConfig(urls=(server.url,), kind="get_reward", template=template))
    with pytest.raises(InvalidRequestError, match="does not take"):
        await client.score(question("a"))
    await client.close()


async def test_another_replica_judges_what_the_first_cannot(server: FakeRewardServer) -> None:
    broken = FakeRewardServer()
    await broken.start()
    broken.refusal = (500, {})
    client = RewardReplicas(RewardConfig(urls=(broken.url, server.url)))
    for _ in range(4):
        assert list((await client.score(question("aa"))).rewards) == [2.0]
    assert len(broken.requests) <= 1, "who has just failed is left alone"
    assert await client.ready()
    await broken.stop()
    await client.close()


async def test_the_key_of_a_server_goes_with_every_request(server: FakeRewardServer) -> None:
    client = RewardReplicas(RewardConfig(urls=(server.url,), api_key_env="PATH"))
    await client.score(question("a"))
    assert server.requests[0].headers["Authorization"] == f"Bearer {os.environ['PATH']}"
    await client.close()


async def test_readiness(server: FakeRewardServer, reward: RewardModel) -> None:
    assert await reward.ready()
    server.healthy = False
    assert not await reward.ready()


async def test_pooling_asks_for_raw_logits_and_subtracts_the_offset(server: FakeRewardServer) -> None:
    client = RewardReplicas(RewardConfig(urls=(server.url,), name="rm", kind="pooling", offset=1.5))
    server.rewards = {"a": 4.0, "bb": float("nan")}
    verdict = await client.score(question("a", "bb"))
    assert (list(verdict.rewards), verdict.tokens, verdict.model) == ([2.5, None], 14, "rm")
    assert server.requests[0].body == {
        "model": "rm",
        "messages": [*MESSAGES, {"role": "assistant", "content": "a"}],
        "use_activation": False,
    }
    assert await client.ready()
    await client.close()


async def test_pooling_refuses_what_it_cannot_do_and_fails_plainly(server: FakeRewardServer) -> None:
    client = RewardReplicas(RewardConfig(urls=(server.url,), name="rm", kind="pooling"))
    with pytest.raises(InvalidRequestError):
        await client.score(question("a", ensemble="mean"))
    server.refusal = (500, {})
    with pytest.raises(RewardError):
        await client.score(question("a", "bb"))
    server.refusal = (200, {"data": []})
    with pytest.raises(RewardError):
        await client.score(question("a"))
    await client.close()


async def test_an_answer_beyond_its_bound_is_not_read(server: FakeRewardServer, reward: RewardModel) -> None:
    server.extra = {"junk": "x" * MAX_ANSWER_BYTES}
    with pytest.raises(RewardError):
        await reward.score(question("a"))


@pytest.mark.parametrize("tokens", [-1, True, "3", 1.5, 10**400, None])
async def test_a_token_count_that_is_none_is_zero(
    server: FakeRewardServer, reward: RewardModel, tokens: Any
) -> None:
    server.extra = {"usage": {"tokens": tokens}}
    assert (await reward.score(question("a"))).tokens == 0


async def test_names_and_flags_that_cannot_be_written_are_left_out(
    server: FakeRewardServer, reward: RewardModel
) -> None:
    server.extra = {
        "model": "\ud800",
        "version": 5,
        "out_of_distribution": ["\ud800", float("nan"), 10**400, {"a": 1}, True, 0.5],
    }
    verdict = await reward.score(question(*"abcdef"))
    assert (verdict.model, verdict.version) == (None, None)
    assert verdict.out_of_distribution == [None, None, None, None, True, 0.5]
