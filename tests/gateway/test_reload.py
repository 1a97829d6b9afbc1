"""A reload: what it changes, what it leaves alone, what it refuses."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway import config_file
from gateway.api_server import create_app
from gateway.config import GatewayConfig
from gateway.instance import Instance
from tests.gateway.fake_servers import FakeRewardServer, FakeVllm, Sample
from tests.gateway.stack import events, serving

ONE = "policies: [{{name: one, urls: ['{vllm}']}}]\nrewards: [{{name: judge, urls: ['{rewards}']}}]\n"
TWO = "policies: [{{name: two, aliases: [zwei], model: tiny, urls: ['{vllm}']}}]\n"


@dataclass
class World:
    """A gateway that was configured by a file."""

    file: Path
    vllm: FakeVllm
    rewards: FakeRewardServer
    instance: Instance
    http: httpx.AsyncClient

    def write(self, text: str, **urls: str) -> None:
        """Put another configuration into the file."""
        urls = {"vllm": self.vllm.url, "rewards": self.rewards.url, **urls}
        self.file.write_text(text.format(**urls), encoding="utf-8")

    async def chat(self, **fields: object) -> httpx.Response:
        """POST a chat."""
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def metric(self, line: str) -> bool:
        """Whether /metrics has this line."""
        return line in (await self.http.get("/metrics")).text.splitlines()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World, None]:
    async with _world(tmp_path / "gateway.yaml") as made:
        yield made


@asynccontextmanager
async def _world(file: Path) -> AsyncGenerator[World, None]:
    vllm, rewards = FakeVllm(), FakeRewardServer()
    async with AsyncExitStack() as stack:
        for server in (vllm, rewards):
            await server.start()
            stack.push_async_callback(server.stop)
        app = create_app(_first(file, vllm.url, rewards.url), load=lambda: config_file.load(file))
        url = await stack.enter_async_context(serving(app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        yield World(file, vllm, rewards, app.state.instance, http)


def _first(file: Path, vllm: str, rewards: str) -> GatewayConfig:
    file.write_text(ONE.format(vllm=vllm, rewards=rewards), encoding="utf-8")
    return config_file.load(file)


async def test_a_new_configuration_is_in_force_at_once(world: World) -> None:
    before = (await world.http.get("/version")).json()["configuration"]
    assert (await world.chat(model="one", best_of=2)).status_code == 200
    world.write(TWO)
    assert await world.instance.reload()
    assert (await world.chat(model="one")).status_code == 404
    for name in ("two", "zwei", None):
        assert (await world.chat(model=name)).status_code == 200
    assert world.vllm.requests[-1].body["model"] == "tiny"
    assert (await world.chat(model="two", best_of=2)).json()["error"]["code"] == "no_reward_model"
    assert (await world.http.get("/version")).json()["configuration"] != before
    assert await world.metric('bonsai_gateway_reloads_total{result="done"} 1.0')


@pytest.mark.parametrize(
    "text",
    [
        "policies: []",
        "policies: [",
        "polcies: [{{urls: ['{vllm}']}}]",
        ONE + "limits: {{max_best_of: 0}}",
        ONE + "keys_file: /nowhere/keys.json",
        ONE.replace("name: judge", "name: judge, kind: get_reward, template: '{{{{%'"),
    ],
)
async def test_what_cannot_work_leaves_the_old_one_in_force(world: World, text: str) -> None:
    before = (await world.http.get("/version")).json()["configuration"]
    world.write(text)
    assert not await world.instance.reload()
    assert (await world.http.get("/version")).json()["configuration"] == before
    assert (await world.chat(model="one", best_of=2)).status_code == 200
    assert await world.metric('bonsai_gateway_reloads_total{result="refused"} 1.0')


async def test_a_stream_goes_on_over_a_reload_that_drops_its_policy(world: World) -> None:
    gate = asyncio.Event()
    world.vllm.samples = [Sample("abc", gate=gate)]
    body = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    other = FakeVllm()
    await other.start()
    async with world.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        arriving = answer.aiter_text()
        text = await anext(arriving)
        world.write("policies: [{{name: other, urls: ['{other}']}}]", other=other.url)
        assert await world.instance.reload()
        assert (await world.chat(model="other")).status_code == 200
        gate.set()
        text += "".join([part async for part in arriving])
    await other.stop()
    assert events(text)[-1] == "[DONE]"
    assert '"finish_reason": "stop"' in text or '"finish_reason":"stop"' in text
    assert len(other.requests) == 1


async def test_a_client_that_stays_keeps_its_connections(world: World) -> None:
    policy = world.instance.runtime.policies[0]
    world.write(ONE + "heartbeat_s: 5\n")
    assert await world.instance.reload()
    assert world.instance.runtime.policies[0] is policy
    assert (await world.chat()).status_code == 200
