"""Drives a server by a scenario, rate by rate, and a second one by the same schedule where there is one.

With two servers each rate is driven at one and then at the other, so that both see the same machine; the
requests are the same to the byte, but for the model's name.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtests.client import Client
from loadtests.errors import LoadTestError
from loadtests.gateway_metrics import parse, under_way
from loadtests.http_client import now
from loadtests.noise import MAX_LAG_S
from loadtests.open_loop import Answer, Sample, drive, few_collections, lag_p99
from loadtests.scenarios import Ask, Load, asker, request

FIRST, SECOND = "first", "compared"
LEFT_LIMIT_S = 5.0
"""How long work that a run left behind is waited for ..."""
LOOK_S = 0.1
"""... and how often it is looked for."""


@dataclass(frozen=True)
class Target:
    """A server under load."""

    label: str
    url: str
    client: Client
    model: str


@dataclass
class Stage:
    """One rate at one server."""

    label: str
    """FIRST or SECOND."""
    url: str
    model: str
    rate: float
    samples: Sequence[Sample]
    noisy: bool = False
    left: float | None = None
    """Requests and candidates that the gateway counts as under way afterwards; None where nothing says."""
    judged: dict[int, float] = field(default_factory=dict)
    """Rewards by the judge that the user named, by the number of the sample."""


def name_of(stage: Stage, stages: Sequence[Stage]) -> str:
    """A stage among all: by its rate, and by its server where there are two."""
    two = any(other.label == SECOND for other in stages)
    return f"{stage.rate:g}/s, {stage.label}" if two else f"{stage.rate:g}/s"


async def drive_all(load: Load, stop: asyncio.Event) -> list[Stage]:
    """Every rate at every server, until `stop`. LoadTestError where a server is not there."""
    ask = asker(load)
    async with AsyncExitStack() as stack:
        targets = [await _target(stack, load, FIRST, load.url, load.model, load.api_key)]
        if load.compare:
            second = (SECOND, load.compare, load.compare_model, load.compare_api_key)
            targets.append(await _target(stack, load, *second))
        turns = [(rate, target) for rate in load.rate for target in targets]
        return [await _stage(load, target, rate, ask, stop) for rate, target in turns if not stop.is_set()]


async def _target(
    stack: AsyncExitStack, load: Load, label: str, url: str, model: str | None, api_key: str | None
) -> Target:
    client = await stack.enter_async_context(Client(url, api_key, load.timeout))
    if model is None:
        return Target(label, url, client, await client.first_model())
    await client.reach()
    return Target(label, url, client, model)


async def _stage(load: Load, target: Target, rate: float, ask: Ask, stop: asyncio.Event) -> Stage:
    def send(index: int) -> Coroutine[Any, Any, Answer]:
        path, body = request(load, target.model, index, ask)
        raw, streamed = msgspec.json.encode(body), "stream" in body
        return _ask(target.client, path, raw, streamed=streamed, leave_after_s=load.leaves_after(index))

    with few_collections():
        samples = await drive(send, load.instants(rate), max_in_flight=load.max_in_flight, stop=stop)
    for index, sample in enumerate(samples):
        sample.best_of = load.best_of_of(index)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    return Stage(
        label=target.label,
        url=target.url,
        model=target.model,
        rate=rate,
        samples=samples,
        noisy=busy or lag_p99(samples) > MAX_LAG_S,
        left=await _left(target.client) if load.scenario == "cancel" else None,
    )


async def _ask(
    client: Client, path: str, raw: bytes, *, streamed: bool, leave_after_s: float | None
) -> Answer:
    try:
        async with asyncio.timeout(leave_after_s):
            return await client.post(path, raw, streamed=streamed)
    except TimeoutError:
        return Answer(cancelled=True)


async def _left(client: Client) -> float | None:
    """What a gateway still counts as under way, once that is nothing, or after LEFT_LIMIT_S."""
    deadline, left = now() + LEFT_LIMIT_S, None
    while left != 0 and now() < deadline:
        reply = await client.metrics()
        try:
            left = under_way(parse(reply.body.decode()))
        except (LoadTestError, ValueError):
            return None
        await asyncio.sleep(LOOK_S)
    return left
