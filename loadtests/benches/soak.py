"""What stays behind after minutes of mixed requests before servers that keep failing.

    python -m loadtests soak

One call in twenty to either fake goes wrong: late, status 500, connection reset, broken stream, error event,
NaN reward, wrong number of rewards. Requests are chats and completions, plain and best of 4, streamed and
not. A warm-up with ten times the faults comes first, so that every label and every code path has been there;
then memory, open files and metric series are read at rest, and again at rest after the soak.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import uvloop

from loadtests.bench import Bench, Flag
from loadtests.fakes.script import Fault, Kind, RewardScript, VllmScript
from loadtests.figures import Row, Run, repeat
from loadtests.gateway_metrics import scrape, under_way
from loadtests.http_client import HttpClient
from loadtests.noise import Watch
from loadtests.open_loop import Answer, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.outcomes import outcome
from loadtests.processes import open_files, resident_bytes
from loadtests.stand import Stand, stand

FLAGS = ("--policy-timeout", "5", "--reward-timeout", "2")
FAULTS, WARM_UP_FAULTS = 0.05, 0.5
WARM_UP_S = 20.0
REST_S = 6.0
"""Longer than the gateway keeps idle connections upstream."""
ANSWER_LIMIT_S = 30.0
MIB = 1024 * 1024
CHAT = {"messages": [{"role": "user", "content": "What runs past the stone?"}]}
COMPLETION = {"prompt": ["What runs past", "the stone?"]}
KINDS: tuple[tuple[str, dict[str, Any]], ...] = tuple(
    (path, {**content, **alignment, **stream})
    for path, content in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION))
    for alignment in ({}, {"best_of": 4})
    for stream in ({}, {"stream": True})
)
ROWS = (
    Row("memory growth", "MiB", at_most=10, worst=True),
    Row("open files, more than before", at_most=2, worst=True),
    Row("requests and slots still held", at_most=0, worst=True),
    Row("metric series, more than before", at_most=0, worst=True),
    Row("requests neither answered nor told that they failed", at_most=0, worst=True),
    Row("tracebacks in the log", at_most=0, worst=True),
    Row("requests"),
    Row("answered whole", "share"),
    Row("faults met", at_least=1, worst=True),
    Row("memory at rest afterwards", "MiB"),
)


@dataclass(frozen=True)
class AtRest:
    """What the gateway holds while nothing happens."""

    resident: int
    files: int
    series: int
    held: float


def policy(share: float) -> VllmScript:
    """The fake vLLM server with this share of faults."""
    kinds: tuple[Kind, ...] = ("delay", "status", "reset", "cut", "error_event")
    faults = tuple(Fault(kind=kind, share=share / len(kinds), ms=500) for kind in kinds)
    return VllmScript(delay_ms=10, tokens=12, tokens_step=3, interval_ms=5, faults=faults)


def reward(share: float) -> RewardScript:
    """The fake reward server with this share of faults."""
    kinds: tuple[Kind, ...] = ("delay", "status", "reset", "cut", "nan", "wrong_count")
    faults = tuple(Fault(kind=kind, share=share / len(kinds), ms=500) for kind in kinds)
    return RewardScript(delay_ms=10, faults=faults)


def run(*, runs: int, rate: float, seconds: float) -> list[Run]:
    """A fresh stand a run."""

    def once() -> Run:
        with stand(policy(WARM_UP_FAULTS), reward=reward(WARM_UP_FAULTS), flags=FLAGS) as running:
            return uvloop.run(soak(running, rate, seconds))

    return repeat(runs, once)


async def soak(running: Stand, rate: float, seconds: float) -> Run:
    """Warm-up, rest, soak, rest."""
    await load(running, rate, min(WARM_UP_S, seconds))
    await running.policy.obey(policy(FAULTS))
    await running.rewards[0].obey(reward(FAULTS))
    before, faults = await at_rest(running), await faults_met(running)
    watch = Watch(running.gateway.pid)
    outcomes, lag_s = await load(running, rate, seconds)
    signs = watch.signs(lag_s)
    after = await at_rest(running)
    values = {
        "memory growth": (after.resident - before.resident) / MIB,
        "open files, more than before": after.files - before.files,
        "requests and slots still held": after.held,
        "metric series, more than before": after.series - before.series,
        "requests neither answered nor told that they failed": outcomes["broken"],
        "tracebacks in the log": running.gateway.log_text().count("Traceback"),
        "requests": outcomes.total(),
        "answered whole": outcomes["answered"] / outcomes.total(),
        "faults met": await faults_met(running) - faults,
        "memory at rest afterwards": after.resident / MIB,
    }
    return Run({name: float(value) for name, value in values.items()}, signs)


async def load(running: Stand, rate: float, seconds: float) -> tuple[Counter[str], float]:
    """Requests of every kind in turn: what became of them, and the generator's lag in s."""
    outcomes: Counter[str] = Counter()
    async with HttpClient(running.gateway.url, ANSWER_LIMIT_S) as http:

        async def send(index: int) -> Answer:
            path, body = KINDS[index % len(KINDS)]
            reply = await http.send("POST", path, msgspec.json.encode({"model": "fake", **body}))
            outcomes[outcome(reply, streamed="stream" in body)] += 1
            return Answer(ended_at=reply.ended_at)

        samples = await open_loop(send, rate=rate, seconds=seconds)
    return outcomes, lag_p99(samples)


async def at_rest(running: Stand) -> AtRest:
    """Let idle connections go, then look; twice, because the first look makes series of its own."""
    await asyncio.sleep(REST_S)
    await scrape(running.gateway.url)
    samples = await scrape(running.gateway.url)
    pid = running.gateway.pid
    return AtRest(resident_bytes(pid), open_files(pid), len(samples), under_way(samples))


async def faults_met(running: Stand) -> int:
    """Calls that went wrong on purpose, so far."""
    return sum([sum((await fake.state()).faults.values()) for fake in running.fakes])


BENCH = Bench(
    name="soak",
    help="mixed requests before servers that keep failing",
    flags=(
        Flag("runs", 1, "the worst counts"),
        Flag("rate", 40.0, "requests a second"),
        Flag("seconds", 180.0, "of soak, after a warm-up of 20 s at most"),
    ),
    rows=ROWS,
    run=run,
    takes_s=215,
)
