"""The gateway on a free port before scripted servers, a client for it, and how answers are read."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from gateway.api_server import create_app
from gateway.config import GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.drain import Drain
from gateway.http_limits import HttpLimits
from gateway.http_protocol import http_protocol
from gateway.metrics import Metrics
from gateway.policy import Policy
from gateway.rewards import RewardModel
from tests.gateway.fake_servers import MODEL, FakeRewardServer, FakeVllm

CHAT = "/v1/chat/completions"


@dataclass
class Stack:
    """A gateway that runs, what is behind it, and a client."""

    url: str
    vllm: FakeVllm
    rewards: FakeRewardServer
    http: httpx.AsyncClient
    metrics: Metrics
    drain: Drain

    async def chat(self, /, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """POST a chat; `fields` go over the defaults."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def complete(self, /, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """POST a completion."""
        body = {"model": MODEL, "prompt": "Hi", **fields}
        return await self.http.post("/v1/completions", json=body, headers=headers)

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now; 0 where it has not moved."""
        return self.metrics.registry.get_sample_value(f"bonsai_gateway_{name}", labels) or 0.0


def config_for(vllm_url: str, reward_url: str | None, **fields: Any) -> GatewayConfig:
    """A configuration for the fakes."""
    rewards = () if reward_url is None else (RewardConfig(urls=(reward_url,), timeout_s=5.0),)
    defaults: dict[str, Any] = {
        "policies": (PolicyConfig(urls=(vllm_url,)),),
        "rewards": rewards,
        "limits": Limits(max_best_of=16, max_candidates_per_request=32),
    }
    if "policy_config" in fields:
        defaults["policies"] = (fields.pop("policy_config"),)
    if "reward_config" in fields:
        defaults["rewards"] = (fields.pop("reward_config"),)
    return GatewayConfig(**(defaults | fields))


@asynccontextmanager
async def running(
    *,
    with_reward: bool = True,
    policy: Policy | None = None,
    reward: RewardModel | None = None,
    **fields: Any,
) -> AsyncGenerator[Stack, None]:
    """The gateway on a free port before a FakeVllm and a FakeRewardServer, all in this event loop."""
    vllm, rewards = FakeVllm(), FakeRewardServer()
    async with AsyncExitStack() as stack:
        for server in (vllm, rewards):
            await server.start()
            stack.push_async_callback(server.stop)
        fields = {name: make(vllm, rewards) if callable(make) else make for name, make in fields.items()}
        config = config_for(vllm.url, rewards.url if with_reward else None, **fields)
        app = create_app(
            config,
            connect_policy=(lambda _: policy) if policy else None,
            connect_reward=(lambda _: reward) if reward else None,
        )
        url = await stack.enter_async_context(serving(app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        service = app.state.service
        yield Stack(url, vllm, rewards, http, service.metrics, service.drain)


@asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[str, None]:
    """An ASGI application under uvicorn in this event loop; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none")
    config.http = http_protocol(HttpLimits(), lambda _: None)
    config.timeout_graceful_shutdown = 1
    server = InProcessServer(config)
    task = asyncio.create_task(server.serve())
    await server.up.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class InProcessServer(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self.up.set()

    async def serve(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await self._serve(sockets)


def events(text: str) -> list[Any]:
    """The data of a stream; `[DONE]` as it is."""
    found = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in found]


def check_envelope(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """An error as every error is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) <= 4096
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    if code is not None:
        assert body["error"]["code"] == code
    return dict(body["error"])
