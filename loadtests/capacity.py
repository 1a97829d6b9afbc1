"""How many requests a second a server can answer: a closed loop, in which each of so many clients asks again
as soon as it is answered, their number doubled until more of them bring no more answers.

A closed loop is the right tool for this one question alone; latencies under load are the open loop's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from loadtests.client import Client
from loadtests.errors import LoadTestError
from loadtests.http_client import now
from loadtests.scenarios import Ask, Load, asker, request
from loadtests.tables import Table, number

CLIENTS = (4, 8, 16, 32, 64, 128, 256)
SETTLING = 0.25
"""Share of a step that is not counted: until then its new clients' first requests are under way."""
ENOUGH = 1.05
"""A step that brings less than so many times the best before is the last one."""
ELSEWHERE = 1_000_000
"""Prompts of this loop begin with this number, so that the open loop's are not in any cache."""


@dataclass(frozen=True)
class Step:
    """What so many clients were answered."""

    clients: int
    answered_per_s: float
    failed: int


@dataclass
class _Pool:
    """Clients that ask until they are stopped, and what became of their requests."""

    load: Load
    model: str
    client: Client
    ask: Ask
    sent: int = 0
    failed: int = 0
    ended: list[float] = field(default_factory=list)
    """When requests were answered."""
    stopping: bool = False

    async def work(self) -> None:
        """One client."""
        while not self.stopping:
            index = self.sent
            self.sent += 1
            path, body = request(self.load, self.model, index, self.ask)
            answer = await self.client.post(path, msgspec.json.encode(body), streamed=False)
            if answer.error is None:
                self.ended.append(now())
            else:
                self.failed += 1
                await asyncio.sleep(0.1)  # a refusal comes at once, and asking at once would be a storm


async def measure(load: Load, step_s: float, clients: Sequence[int] = CLIENTS) -> list[Step]:
    """The steps, each of so many seconds; requests are the load's own.

    Raises:
        LoadTestError: no server there, or it answers nothing.
    """
    asked = asker(load)
    ask: Ask = asked if load.prompts else lambda index: asked(index + ELSEWHERE)
    async with Client(load.url, load.api_key, load.timeout) as client:
        pool = _Pool(load, load.model or await client.first_model(), client, ask)
        steps: list[Step] = []
        async with asyncio.TaskGroup() as group:
            for more in clients:
                for _ in range(more - (steps[-1].clients if steps else 0)):
                    group.create_task(pool.work())
                steps.append(await _step(pool, more, step_s))
                if steps[-1].failed or steps[-1].answered_per_s < ENOUGH * best(steps[:-1]):
                    break
            pool.stopping = True
    if not best(steps):
        raise LoadTestError(f"{load.url}: answered nothing, {pool.failed} requests failed", exit_code=1)
    return steps


async def _step(pool: _Pool, clients: int, seconds: float) -> Step:
    failed = pool.failed
    await asyncio.sleep(SETTLING * seconds)
    begin, answered = now(), len(pool.ended)
    await asyncio.sleep((1 - SETTLING) * seconds)
    return Step(clients, (len(pool.ended) - answered) / (now() - begin), pool.failed - failed)


def best(steps: Sequence[Step]) -> float:
    """Answers a second of the best step in which nothing failed; 0 of none."""
    return max((step.answered_per_s for step in steps if not step.failed), default=0.0)


def table(steps: Sequence[Step]) -> Table:
    """A row for each step."""
    rows = [(str(step.clients), number(step.answered_per_s), str(step.failed)) for step in steps]
    return Table("Capacity, by a closed loop", ("clients", "answered a second", "failed"), rows)
