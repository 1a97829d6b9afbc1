"""What holds after every fault, whatever it was: the gateway is as whole as it was before.

Checked while it still stands (`check`), and once it has been taken down (`Footprint`).
"""

import asyncio
import gc
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass

from tests.faults.world import CANARIES, World, texts, until

SLACK_FDS = 2
FORBIDDEN = ("Traceback", "never retrieved", "was never awaited")
CONNECTION_TASK = "RequestHandler.start"
"""The task that a fake has per connection, idle ones included."""


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    tasks: Counter[str]
    fds: int

    @staticmethod
    def now() -> "Footprint":
        """Of everything but the task that asks."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return Footprint(Counter(map(name_of, tasks)), len(os.listdir("/dev/fd")))

    def grown_to(self, later: "Footprint") -> str:
        """What there is later that was not there now; empty if nothing."""
        tasks = later.tasks - self.tasks
        del tasks[CONNECTION_TASK]
        fds = later.fds - self.fds
        return f"tasks {dict(tasks)} " * bool(tasks) + f"{fds} files" * (fds > SLACK_FDS)

    def tasks_grown_to(self, later: "Footprint") -> str:
        """The same without files: idle connections may stay open."""
        return self.grown_to(Footprint(later.tasks, self.fds))


def name_of(task: "asyncio.Task[object]") -> str:
    """What it runs."""
    return getattr(task.get_coro(), "__qualname__", "?")


async def check(world: World, before: Footprint, patience_s: float = 10.0) -> None:
    """All invariants of a gateway that stands (or has left by itself).

    Args:
        before: as it was when the world had just been made.
        patience_s: the longest wait for what takes a moment.
    """

    def idle() -> bool:
        return not any(server.open for server in world.everyone)

    await world.heal()
    await until(idle, "nothing open behind the gateway", patience_s)
    if not world.left:
        await check_works(world)
    await until(lambda: not busy_gauges(world), "all gauges back at zero", patience_s)
    if not world.left:
        await until(lambda: not before.tasks_grown_to(Footprint.now()), "no task left over", patience_s)
    check_counters(world)
    check_logs(world)
    check_canaries(world)


async def check_works(world: World) -> None:
    """It is healthy and ready, and answers a normal best-of-4 and a normal stream."""
    assert (await world.http.get("/health")).status_code == 200
    assert (await world.http.get("/health/ready")).status_code == 200
    answer = await world.chat(best_of=4)
    record = answer.json()["alignment"]
    assert (record["finished"], record["scored"], record["degraded"]) == (4, 4, None)
    assert texts(await world.chat(stream=True)) == ["a"]


def busy_gauges(world: World) -> dict[str, float]:
    """Gauges of work under way that are not zero."""
    return {
        metric.name + str(sample.labels): sample.value
        for metric in world.metrics.registry.collect()
        for sample in metric.samples
        if metric.type == "gauge" and sample.value != 0 and counts_work(metric.name)
    }


def counts_work(name: str) -> bool:
    """Whether a gauge counts what is under way, and not what there is."""
    return any(
        word in name for word in ("in_flight", "in_use", "queued", "waiting", "outstanding", "running")
    )


def check_counters(world: World) -> None:
    """Every request that came was counted once, and none as a bug of ours."""
    outcomes = world.outcomes()
    assert outcomes.total() == world.arrivals.count
    assert not outcomes["500"] or world.declared


async def check_gone(world: World, patience_s: float = 10.0) -> None:
    """The gateway leaves, and every connection that it had goes with it: none was lost from its pools."""
    await world.http.aclose()
    await world.leave()

    def parted() -> bool:
        return not any(server.connections for server in world.everyone)

    await until(parted, "no connection behind a gateway that has gone", patience_s)
    check_request_log(world)


def check_request_log(world: World) -> None:
    """A line of JSON for each request that came, and no secret in any."""
    assert world.log is not None
    world.log.sink.close()
    world.log_file.seek(0)
    lines = world.log_file.read().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["request"] * world.arrivals.count
    assert not [line for line in lines for canary in CANARIES if canary.encode() in line]


def check_logs(world: World) -> None:
    """No error but those that the test declared."""
    gc.collect()  # a task whose exception nobody looked at says so when it goes
    bad = [line for line in world.tap.lines if is_bad(line.level, line.text)]
    undeclared = [line for line in bad if not any(text in line.text for text in world.declared)]
    assert not undeclared


def is_bad(level: int, text: str) -> bool:
    """Whether a line tells of something unforeseen."""
    return level >= logging.ERROR or any(word in text for word in FORBIDDEN)


def check_canaries(world: World) -> None:
    """No key, prompt or text of a server behind the gateway in logs or metrics."""
    said = {line.text for line in world.tap.lines} | {world.metrics.render().decode()}
    assert not [(canary, text) for canary in CANARIES for text in said if canary in text]
