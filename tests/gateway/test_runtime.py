"""What a configuration came to be: who is closed when it is replaced, and not before the last has left."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from gateway.api_server import create_app
from gateway.config import GatewayConfig, PolicyConfig, RewardConfig
from gateway.errors import InvalidRequestError
from gateway.runtime import Runtime
from tests.gateway.fakes import FakePolicy, FakeReward
from tests.gateway.stack import serving


@dataclass
class Slow(FakePolicy):
    """A policy that takes its time over questions that generate nothing."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def ready(self) -> bool:
        """In time."""
        self.asked.set()
        await self.gate.wait()
        return not self.gone.is_set()

    async def models(self) -> list[dict[str, Any]]:
        """In time."""
        assert await self.ready()
        return [{"id": "m"}]

    async def close(self) -> None:
        """For good."""
        self.gone.set()


class Reward(FakeReward):
    """A reward model that notes its end."""

    gone = False

    async def close(self) -> None:
        """For good."""
        self.gone = True


def policy(port: int, **fields: Any) -> PolicyConfig:
    """One at this port."""
    return PolicyConfig(urls=(f"http://127.0.0.1:{port}",), **fields)


def reward(port: int, **fields: Any) -> RewardConfig:
    """One at this port."""
    return RewardConfig(urls=(f"http://127.0.0.1:{port}",), **fields)


async def test_what_a_successor_takes_over_stays_open() -> None:
    first = GatewayConfig(policies=(policy(1), policy(2, name="b")), rewards=(reward(3), reward(4, name="j")))
    second = GatewayConfig(policies=(policy(2, name="b"), policy(5)), rewards=(reward(4, name="j"),))
    old = Runtime.build(first, lambda _: Slow(), lambda _: Reward())
    new = Runtime.build(second, lambda _: Slow(), lambda _: Reward(), previous=old)
    assert new.policies[0] is old.policies[1]
    assert new.judges[0] is old.judges[1]
    await old.retire(new)
    assert [closed(part.client) for part in old.policies] == [True, False]
    assert [closed(part.client) for part in old.judges] == [True, False]
    assert not closed(new.policies[1].client)


async def test_a_runtime_in_use_is_closed_when_the_last_has_left() -> None:
    old = Runtime.build(GatewayConfig(policies=(policy(1),)), lambda _: Slow(), lambda _: Reward())
    new = Runtime.build(GatewayConfig(policies=(policy(2),)), lambda _: Slow(), lambda _: Reward(), old)
    with old.used():
        with old.used():
            retiring = asyncio.create_task(old.retire(new))
        await asyncio.sleep(0)
        assert not closed(old.policies[0].client)
    await retiring
    assert closed(old.policies[0].client)


async def test_judges_by_name() -> None:
    config = GatewayConfig(policies=(policy(1),), rewards=(reward(3, name="a"), reward(4, name="b")))
    runtime = Runtime.build(config, lambda _: Slow(), lambda _: Reward())
    assert [runtime.judge(name).config.name for name in (None, "a", "b")] == ["a", "a", "b"]
    with pytest.raises(InvalidRequestError) as caught:
        runtime.judge("c")
    assert caught.value.code == "reward_model_not_found"


@pytest.mark.parametrize("path", ["/health/ready", "/v1/models", "/v1/models/m"])
async def test_who_asks_about_a_policy_keeps_it_over_a_reload(path: str) -> None:
    made: list[Slow] = []

    def connect(_: PolicyConfig) -> Slow:
        made.append(Slow())
        return made[-1]

    first, second = (GatewayConfig(policies=(policy(port),)) for port in (1, 2))
    app = create_app(first, load=lambda: second, connect_policy=connect)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
        asking = asyncio.create_task(http.get(path))
        await made[0].asked.wait()
        assert await app.state.instance.reload()
        await http.get("/health/live")
        assert not made[0].gone.is_set()
        made[0].gate.set()
        assert (await asking).status_code == 200
        await asyncio.wait_for(made[0].gone.wait(), 5)


def closed(client: object) -> bool:
    """Whether its connections were given back."""
    assert isinstance(client, Slow | Reward)
    return client.gone.is_set() if isinstance(client, Slow) else client.gone
