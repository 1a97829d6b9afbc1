"""What the gateway costs beside the least that a Python gateway can be, on this machine, in the same minute.

    python -m loadtests gateway-overhead

A fake vLLM server answers after 20 ms. Closed loops take turns on the gateway and on a pass-through of 15
lines (FastAPI in, aiohttp out), so both meet the same noise. 256 connections saturate; one connection shows
the latency that is added. Then the gateway gets half of the load that saturated it, by the clock, and its own
histogram says how long a request is in its hands: the waits for a slot and for the policy are not in it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.client import understand
from loadtests.errors import LoadTestError
from loadtests.fakes.script import VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.gateway_metrics import quantile, scrape
from loadtests.http_client import HttpClient, now
from loadtests.noise import Watch
from loadtests.open_loop import Answer, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.processes import Server, cores, cpu_seconds, free_port, pinned, server
from loadtests.stand import fake, gateway

FAKE = VllmScript(delay_ms=20, tokens=72)
CONNECTIONS = 256
BUSY = 0.9
"""Of its core: below this the server under test was not what limited a run."""
PASS_THROUGH = ("-m", "uvicorn", "loadtests.pass_through:app", "--loop", "uvloop", "--http", "httptools")
CHAT = "/v1/chat/completions"
PROMPT = "Tell me about the river, the stone and the lamp. " * 20
BODY = msgspec.json.encode(
    {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 96}
)
ROWS = (
    Row("saturation, gateway / pass-through", "x", at_least=0.6),
    # On a machine with other work, or a generator at its own limit, the one that can be trusted.
    Row("CPU per request, pass-through / gateway", "x", at_least=0.6),
    Row("gateway: own time p50 at half load", "ms", at_most=0.5),
    Row("gateway: own time p99 at half load", "ms", at_most=2),
    Row("gateway: saturation", "1/s"),
    Row("pass-through: saturation", "1/s"),
    Row("gateway: CPU per request", "ms"),
    Row("pass-through: CPU per request", "ms"),
    Row("gateway: p50 added at one connection", "ms"),
    Row("pass-through: p50 added at one connection", "ms"),
    Row("gateway: p50 added at half load", "ms"),
    Row("gateway: p99 added at half load", "ms"),
    Row("half load: failed requests", at_most=0, worst=True),
)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One closed loop against one server."""

    per_second: float
    p50_ms: float
    cpu_ms: float
    """Of the server, per request."""
    busy: float
    """Share of its core."""


@dataclass(frozen=True)
class Targets:
    """The fake itself, the gateway and the pass-through in front of it."""

    direct: Server
    gateway: Server
    plain: Server


def run(*, runs: int, seconds: float) -> list[Run]:
    """Start the three servers, take turns, end them."""
    with targets() as servers:
        return repeat(runs, lambda: uvloop.run(once(servers, seconds)))


@contextmanager
def targets() -> Iterator[Targets]:
    """All three, on their cores."""
    test_core, other_core = cores()
    with ExitStack() as running:
        running.enter_context(pinned(other_core))
        direct = running.enter_context(fake("vllm", FAKE, other_core)).server
        proxy = running.enter_context(gateway(["--policy-url", direct.url], test_core))
        port = free_port()
        plain = server(
            [*PASS_THROUGH, "--no-access-log", "--port", str(port)],
            url=f"http://127.0.0.1:{port}",
            ready="/openapi.json",
            core=test_core,
            env={"UPSTREAM": direct.url},
        )
        yield Targets(direct, proxy, running.enter_context(plain))


async def once(servers: Targets, seconds: float) -> Run:
    """One turn of everything."""
    watch = Watch(servers.gateway.pid)
    full = {
        "gateway": await closed_loop(servers.gateway, CONNECTIONS, seconds),
        "pass-through": await closed_loop(servers.plain, CONNECTIONS, seconds),
    }
    signs = watch.signs() + [
        f"the {name} used only {loop.busy:.0%} of its core" for name, loop in full.items() if loop.busy < BUSY
    ]
    alone = {
        "direct": await closed_loop(servers.direct, 1, seconds / 2),
        "gateway": await closed_loop(servers.gateway, 1, seconds / 2),
        "pass-through": await closed_loop(servers.plain, 1, seconds / 2),
    }
    half, half_signs = await half_load(servers.gateway, full["gateway"].per_second / 2, seconds)
    direct_ms = alone["direct"].p50_ms
    for share in ("p50", "p99"):
        half[f"gateway: {share} added at half load"] -= direct_ms
    return Run(compare(full, alone) | half, [*signs, *half_signs])


def compare(full: dict[str, Loop], alone: dict[str, Loop]) -> dict[str, float]:
    """The closed loops' figures."""
    proxy, plain = full["gateway"], full["pass-through"]
    values = {
        "saturation, gateway / pass-through": proxy.per_second / plain.per_second,
        "CPU per request, pass-through / gateway": plain.cpu_ms / proxy.cpu_ms,
    }
    for name, loop in full.items():
        values[f"{name}: saturation"] = loop.per_second
        values[f"{name}: CPU per request"] = loop.cpu_ms
        values[f"{name}: p50 added at one connection"] = alone[name].p50_ms - alone["direct"].p50_ms
    return values


async def closed_loop(target: Server, connections: int, seconds: float) -> Loop:
    """Each connection sends its next request when the last is answered."""
    latencies: list[float] = []
    async with HttpClient(target.url) as http:
        await _ask(http)  # the first connection and imports are not measured
        cpu, begin = cpu_seconds(target.pid), now()
        until = begin + seconds
        await asyncio.gather(*(_repeat(http, until, latencies) for _ in range(connections)))
        took, used = now() - begin, cpu_seconds(target.pid) - cpu
    return Loop(
        per_second=len(latencies) / took,
        p50_ms=percentile(latencies, 0.5) * 1000,
        cpu_ms=used / len(latencies) * 1000,
        busy=used / took,
    )


async def half_load(target: Server, rate: float, seconds: float) -> tuple[dict[str, float], list[str]]:
    """An open loop; times in ms, and what disturbed it."""
    async with HttpClient(target.url) as http:

        async def send(_: int) -> Answer:
            return understand(await http.send("POST", CHAT, BODY), streamed=False)

        await open_loop(send, rate=rate, seconds=min(seconds, 0.5))  # opens the connections
        before, watch = await scrape(target.url), Watch(target.pid)
        samples = await open_loop(send, rate=rate, seconds=seconds)
        after = await scrape(target.url)
    latencies = [sample.latency_s * 1000 for sample in samples if sample.answer.error is None]
    values = {"half load: failed requests": float(len(samples) - len(latencies))}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        own_s = quantile(before, after, "self_seconds", {"mode": "pass_through"}, share)
        values[f"gateway: own time {name} at half load"] = own_s * 1000
        values[f"gateway: {name} added at half load"] = percentile(latencies, share)
    return values, watch.signs(lag_p99(samples))


async def _repeat(http: HttpClient, until: float, latencies: list[float]) -> None:
    sent = now()
    while not latencies or sent < until:  # once at least, however busy the machine
        await _ask(http)
        latencies.append(now() - sent)
        sent = now()


async def _ask(http: HttpClient) -> None:
    reply = await http.send("POST", CHAT, BODY)
    if reply.status != 200 or b"chatcmpl-fake" not in reply.pieces[0]:
        raise LoadTestError(f"a plain request was answered by {reply.error or reply.status}", exit_code=1)


BENCH = Bench(
    name="gateway-overhead",
    help="the gateway against a pass-through of 15 lines",
    flags=(Flag("runs", RUNS, "the median counts"), Flag("seconds", 4.0, "of each loop")),
    rows=ROWS,
    run=run,
    takes_s=60,
)
