"""What the gateway costs beside the least that a Python gateway can be, on this machine, in the same minute.

    python -m loadtests gateway-overhead

A fake upstream answers after 20 ms. It and the load generator share one core, the server under test has
another. Closed loops take turns on the gateway and on a pass-through of 15 lines (FastAPI in, aiohttp out),
so both meet the same noise; the median of the rounds counts. 128 connections saturate; one connection shows
the latency that is added.
"""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import aiohttp

from loadtests.errors import LoadTestError
from loadtests.figures import Figure, percentile
from loadtests.processes import cores, cpu_seconds, free_port, server

DELAY_MS = 20
CONNECTIONS = 128
TARGET_RATIO = 0.6
BUSY = 0.9
"""Of its core: below this the server under test was not what limited the run."""
PASS_THROUGH = ("-m", "uvicorn", "loadtests.pass_through:app")
PROMPT = "Tell me about the river, the stone and the lamp. " * 20
BODY = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}


@dataclass(frozen=True, kw_only=True)
class Round:
    """One closed loop against one server."""

    per_second: float
    p50_ms: float
    cpu_ms: float
    """Of the server, per request."""
    busy: float
    """Share of its core."""


@dataclass(frozen=True)
class Target:
    """A running server under test."""

    name: str
    url: str
    process: subprocess.Popen[bytes]


def measure(*, rounds: int, seconds: float) -> list[Figure]:
    """Start the three servers, take turns, end them. LoadTestError when one does not start or misbehaves."""
    test_core, other_core = cores()
    with targets(test_core, other_core) as (direct, *proxies):
        saturated: dict[str, list[Round]] = {proxy.name: [] for proxy in proxies}
        alone: dict[str, list[Round]] = {target.name: [] for target in (direct, *proxies)}
        for _ in range(rounds):
            for proxy in proxies:
                saturated[proxy.name].append(asyncio.run(closed_loop(proxy, CONNECTIONS, seconds)))
            for target in (direct, *proxies):
                alone[target.name].append(asyncio.run(closed_loop(target, 1, seconds / 2)))
    command = f"python -m loadtests gateway-overhead --rounds {rounds} --seconds {seconds:g}"
    return figures(saturated, alone, one_core=test_core == other_core, command=command)


@contextmanager
def targets(test_core: int, other_core: int) -> Iterator[list[Target]]:
    """The fake upstream itself, the gateway and the pass-through in front of it."""
    ports = [free_port() for _ in range(3)]
    direct, gateway, plain = (f"http://127.0.0.1:{port}" for port in ports)
    fake_flags = ["--port", str(ports[0]), "--delay-ms", str(DELAY_MS)]
    gateway_flags = ["--policy-url", direct, "--port", str(ports[1])]
    plain_flags = ["--port", str(ports[2]), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with ExitStack() as running:

        def start(url: str, ready: str, core: int, *arguments: str) -> subprocess.Popen[bytes]:
            env = {"UPSTREAM": direct}
            return running.enter_context(server(arguments, ready_url=f"{url}{ready}", core=core, env=env))

        yield [
            Target(
                "direct", direct, start(direct, "/", other_core, "-m", "loadtests.fake_upstream", *fake_flags)
            ),
            Target(
                "gateway",
                gateway,
                start(gateway, "/health/ready", test_core, "-m", "gateway", *gateway_flags),
            ),
            Target(
                "pass-through", plain, start(plain, "/openapi.json", test_core, *PASS_THROUGH, *plain_flags)
            ),
        ]


async def closed_loop(target: Target, connections: int, seconds: float) -> Round:
    """Each connection sends its next request when the last is answered."""
    latencies: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _ask(session, target)  # the first connections and imports are not measured
        cpu, begin = cpu_seconds(target.process.pid), time.perf_counter()
        workers = [_repeat(session, target, begin + seconds, latencies) for _ in range(connections)]
        await asyncio.gather(*workers)
        took, used = time.perf_counter() - begin, cpu_seconds(target.process.pid) - cpu
    return Round(
        per_second=len(latencies) / took,
        p50_ms=percentile(latencies, 0.5) * 1000,
        cpu_ms=used / len(latencies) * 1000,
        busy=used / took,
    )


async def _repeat(
    session: aiohttp.ClientSession, target: Target, until: float, latencies: list[float]
) -> None:
    while (sent := time.perf_counter()) < until:
        await _ask(session, target)
        latencies.append(time.perf_counter() - sent)


async def _ask(session: aiohttp.ClientSession, target: Target) -> None:
    try:
        async with session.post(f"{target.url}/v1/chat/completions", json=BODY) as answer:
            raw = await answer.read()
    except aiohttp.ClientError as error:
        raise LoadTestError(f"{target.name} broke under load: {type(error).__name__}", 1) from error
    if answer.status != 200 or b"chatcmpl-fake" not in raw:
        raise LoadTestError(f"{target.name} answered {answer.status} to a plain request", exit_code=1)


def figures(
    saturated: dict[str, list[Round]], alone: dict[str, list[Round]], *, one_core: bool, command: str
) -> list[Figure]:
    """Medians over the rounds, and the gateway's share of the pass-through."""
    rate = {name: statistics.median(r.per_second for r in runs) for name, runs in saturated.items()}
    cpu = {name: statistics.median(r.cpu_ms for r in runs) for name, runs in saturated.items()}
    busy = {name: statistics.median(r.busy for r in runs) for name, runs in saturated.items()}
    p50 = {name: statistics.median(r.p50_ms for r in runs) for name, runs in alone.items()}
    noisy = one_core or min(busy.values()) < BUSY

    def figure(
        name: str, value: float, unit: str, target: str | None = None, met: bool | None = None
    ) -> Figure:
        return Figure(
            figure=name, value=value, unit=unit, target=target, met=met, noisy=noisy, command=command
        )

    shares = {
        "saturation, gateway / pass-through": rate["gateway"] / rate["pass-through"],
        # On a machine with other work, or a generator at its own limit, the one that can be trusted.
        "CPU per request, pass-through / gateway": cpu["pass-through"] / cpu["gateway"],
    }
    rows = [figure(name, x, "x", f">= {TARGET_RATIO}", x >= TARGET_RATIO) for name, x in shares.items()]
    for name in ("gateway", "pass-through"):
        rows += [
            figure(f"{name}: saturation", rate[name], "1/s"),
            figure(f"{name}: CPU per request", cpu[name], "ms"),
            figure(f"{name}: busy", busy[name], "of a core"),
            figure(f"{name}: p50 added at one connection", p50[name] - p50["direct"], "ms"),
        ]
    return rows
