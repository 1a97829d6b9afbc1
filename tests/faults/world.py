"""The world of a fault test: a gateway before three policy servers and two reward servers, all scripted.

Everything that a client says in it holds canaries, which must not come out anywhere.
"""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, Any

import httpx
from fastapi import FastAPI
from msgspec.structs import replace
from openai import AsyncOpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api_server import create_app
from gateway.config import GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.http_limits import HttpLimits
from gateway.http_protocol import http_protocol
from gateway.instance import Instance
from gateway.logs import LogOptions, Logs
from gateway.server import Hooks, Server
from tests.faults.fakes import Behaviour, FaultyJudge, FaultyVllm, Load, heal
from tests.faults.logs import Tap, tapped
from tests.gateway.stack import Stack, check_envelope

CANARY_KEY = "sk-canary-4c1d0b6e"
CANARY_PROMPT = "canary-prompt-9f27e1"
CANARY_UPSTREAM = "canary-upstream-/srv/engine-77aa"
CANARIES = (CANARY_KEY, CANARY_PROMPT, CANARY_UPSTREAM)
MESSAGES = [{"role": "user", "content": CANARY_PROMPT}]

DRAIN_S = 1.0

WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "stream": {"stream": True},
    "best_of": {"best_of": 4},
    "best_of_stream": {"best_of": 4, "stream": True},
}
"""The four ways through the gateway, as fields of a request."""


class Arrivals:
    """Counts the requests that reach the application: what its own counters have to add up to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        self.count += scope["type"] == "http"
        await self._app(scope, receive, send)


@dataclass
class World(Stack):
    """The gateway, what is behind it, clients for it, and what was heard of it."""

    vllms: Sequence[FaultyVllm] = ()
    judges: Sequence[FaultyJudge] = ()
    load: Load = field(default_factory=Load)
    arrivals: Arrivals = field(default_factory=lambda: Arrivals(_nothing))
    tap: Tap = field(default_factory=Tap)
    declared: set[str] = field(default_factory=set)
    """Texts of error lines that a test expects to see logged."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Holds the gateway alone."""
    left: bool = False
    instance: Instance | None = None
    configured: list[GatewayConfig] = field(default_factory=list)
    """What a reload reads is the last one."""
    log: Logs | None = None
    log_file: IO[bytes] = field(default_factory=BytesIO)
    """The gateway's own log, a line for each request."""

    async def chat(self, /, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """POST a chat that holds the canary."""
        return await super().chat(headers, **({"messages": MESSAGES} | fields))

    async def complete(self, /, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """POST a completion that holds the canary."""
        return await super().complete(headers, **({"prompt": CANARY_PROMPT} | fields))

    async def every_way(self, **fields: Any) -> dict[str, httpx.Response]:
        """A chat by each of the four ways."""
        return {name: await self.chat(**way, **fields) for name, way in WAYS.items()}

    def client(self, **options: Any) -> AsyncOpenAI:
        """The official client, with the canary for a key."""
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=CANARY_KEY, **({"max_retries": 0, "timeout": 20} | options)
        )

    def policies_do(self, behaviour: Behaviour | None) -> None:
        """All replicas of the policy behave so."""
        for vllm in self.vllms:
            vllm.behaviour = behaviour

    def judges_do(self, behaviour: Behaviour | None) -> None:
        """All replicas of the reward model behave so."""
        for judge in self.judges:
            judge.behaviour = behaviour

    def say(self, **script: Any) -> None:
        """Set these attributes of all policy servers."""
        for vllm in self.vllms:
            for name, value in script.items():
                assert hasattr(vllm, name)
                setattr(vllm, name, value)

    def judge(self, **script: Any) -> None:
        """Set these attributes of all reward servers."""
        for judge in self.judges:
            for name, value in script.items():
                assert hasattr(judge, name)
                setattr(judge, name, value)

    @property
    def calls(self) -> int:
        """Requests to generate that went upstream."""
        return sum(vllm.calls for vllm in self.vllms)

    def outcomes(self) -> Counter[str]:
        """The gateway's own count of the requests that it ended, by code."""
        found: Counter[str] = Counter()
        for metric in self.metrics.registry.collect():
            for sample in metric.samples:
                if sample.name == "bonsai_gateway_requests_total":
                    found[sample.labels["code"]] += int(sample.value)
        return found

    @property
    def everyone(self) -> list[FaultyVllm | FaultyJudge]:
        """All servers behind the gateway."""
        return [*self.vllms, *self.judges]

    async def heal(self) -> None:
        """Everything behind the gateway works again."""
        for server in self.everyone:
            heal(server)
            await server.ensure_started()

    async def reload(self, vllms: Sequence[FaultyVllm]) -> None:
        """Go on with these policy servers."""
        assert self.instance is not None
        policy = replace(self.configured[0].policies[0], urls=tuple(vllm.url for vllm in vllms))
        self.configured.append(replace(self.configured[0], policies=(policy,)))
        assert await self.instance.reload()

    async def leave(self) -> None:
        """Stop the gateway as a signal does, and wait until it has gone."""
        self.left = True
        await self.stack.aclose()


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """No application."""


def config_for(vllms: Sequence[str], judges: Sequence[str], **fields: Any) -> GatewayConfig:
    """The gateway's configuration: `policy` and `reward` are settings of those, the rest its own."""
    policy, reward = fields.pop("policy", {}), fields.pop("reward", {})
    limits = fields.pop("limits", Limits(max_best_of=16, max_candidates_per_request=32))
    return GatewayConfig(
        policies=(PolicyConfig(urls=tuple(vllms), **policy),),
        rewards=(RewardConfig(urls=tuple(judges), **{"timeout_s": 5.0, **reward}),),
        limits=limits,
        **fields,
    )


@asynccontextmanager
async def standing(*, replicas: int = 3, **fields: Any) -> AsyncGenerator[World, None]:
    """A world for the length of the block: so many policy servers, two reward servers (one, if one of
    each is wanted), and `fields` as in `config_for`."""
    load = Load()
    vllms = [FaultyVllm(load) for _ in range(replicas)]
    judges = [FaultyJudge() for _ in range(min(replicas, 2))]
    async with AsyncExitStack() as stack:
        for server in (*vllms, *judges):
            await server.start()
            stack.push_async_callback(server.stop)
        configured = [config_for([v.url for v in vllms], [j.url for j in judges], **fields)]
        log, log_file = stack.enter_context(logging_to_a_file())
        app = create_app(configured[0], load=lambda: configured[-1], log=log)
        arrivals = Arrivals(app)
        gateway = await stack.enter_async_context(AsyncExitStack())
        url = await gateway.enter_async_context(serving(arrivals, app))
        tap = stack.enter_context(tapped())
        http = await stack.enter_async_context(client_for(url))
        service = app.state.service
        yield World(
            url,
            vllms[0],
            judges[0],
            http,
            service.metrics,
            service.drain,
            vllms=vllms,
            judges=judges,
            load=load,
            arrivals=arrivals,
            tap=tap,
            stack=gateway,
            instance=app.state.instance,
            configured=configured,
            log=log,
            log_file=log_file,
        )


@contextmanager
def logging_to_a_file() -> Iterator[tuple[Logs, IO[bytes]]]:
    """The gateway's log as it would go to stderr, all of it."""
    with TemporaryFile() as file:
        log = Logs(LogOptions(format="json", level="debug"), file.fileno())
        try:
            yield log, file
        finally:
            log.sink.close()


class PromptServer(Server):
    """Looks more often than every 100 ms whether it should end: that is felt where each test has its own."""

    async def main_loop(self) -> None:
        """See uvicorn."""
        ticks = 0
        while not await self.on_tick(ticks):
            await asyncio.sleep(0.01)
            ticks += 1


@asynccontextmanager
async def serving(arrivals: Arrivals, app: FastAPI) -> AsyncGenerator[str, None]:
    """The application as it ships, behind its own server and protocol, in this event loop; its address."""
    up, metrics = asyncio.Event(), app.state.service.metrics
    hooks = Hooks(
        drain=app.state.service.drain,
        reload=app.state.instance.reload,
        lag=metrics.lag_seconds,
        started=up.set,
    )
    protocol = http_protocol(HttpLimits(), lambda code: metrics.errors.labels(code).inc())
    server = PromptServer(arrivals, protocol, hooks, drain_s=DRAIN_S)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        task = asyncio.create_task(server.serve([listener]))
        await up.wait()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.leave(delay_s=0)
            await task


@asynccontextmanager
async def client_for(url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client that looks at every error it is given."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url,
        timeout=20,
        limits=limits,
        headers={"authorization": f"Bearer {CANARY_KEY}"},
        event_hooks={"response": [check_error]},
    ) as http:
        yield http


async def check_error(response: httpx.Response) -> None:
    """Every error is in the envelope, is none of ours, and tells nothing."""
    if response.status_code < 400:
        return
    await response.aread()
    if response.request.method != "HEAD":
        check_envelope(response, response.status_code)
    assert response.status_code != 500
    said = response.text + repr(response.headers.multi_items())
    assert not [canary for canary in CANARIES if canary in said], said


def texts(answer: httpx.Response) -> list[str]:
    """What the choices of a chat say, streamed or not. An error event is "error"."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return [choice["message"]["content"] for choice in answer.json()["choices"]]
    found: dict[int, str] = {}
    for part in answer.text.split("\n\n"):
        data = part.removeprefix("data: ")
        if data in {"", "[DONE]"}:
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return ["error"]
        for choice in chunk["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return [found[index] for index in sorted(found)]


async def until(condition: Any, what: str, seconds: float = 10.0) -> None:
    """Wait until `condition()` holds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # nobody would set an event for all that is waited for
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"this did not come about: {what}") from None
