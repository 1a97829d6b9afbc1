"""How fast the gateway relays streams through one core, and what it adds to the first token.

    python -m loadtests stream-relay

Relayed as fast as they come: streams on 32 connections whose events a fake vLLM server sends without a pause,
one write to the socket each, as vLLM does; and, beside it, 16 to a write, as they come where a network or a
busy engine holds them back. Paced: so many streams of 50 tokens a second that 22,000 chunks a second are
offered, each alone on its way; what arrives is counted. An event has some 190 bytes, and every stream is
checked to the last one.

First token: streams at a moderate rate by the clock, in turn through the gateway and direct; added is the
gateway's percentile less the median direct.
"""

import asyncio
from dataclasses import dataclass

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.errors import LoadTestError
from loadtests.fakes.script import VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.http_client import HttpClient, Reply, now
from loadtests.noise import Watch
from loadtests.open_loop import Answer, Sample, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.processes import cpu_seconds
from loadtests.stand import Stand, stand

CHAT = "/v1/chat/completions"
BODY = msgspec.json.encode(
    {"model": "fake", "messages": [{"role": "user", "content": "Tell me about the river."}], "stream": True}
)
CONNECTIONS = 32
COALESCED = 16
TOKENS_PER_S = 50
OFFERED_PER_S = 22_000
SETTLE_S = 1.0
"""Until all paced streams have started; as much is left at their end."""
FIRST = VllmScript(delay_ms=20, tokens=50, interval_ms=10)
FIRST_RATE = 100.0
"""Streams a second, through the gateway and as many direct."""
TARGET = 20_000
ROWS = (
    Row("relayed, one event a write", "chunks/s", at_least=TARGET),
    Row("CPU per chunk, one event a write", "us"),
    Row(f"relayed, {COALESCED} events a write", "chunks/s", at_least=TARGET),
    Row(f"CPU per chunk, {COALESCED} events a write", "us"),
    Row(f"delivered of {OFFERED_PER_S} paced chunks/s", "chunks/s", at_least=TARGET),
    Row("CPU per chunk, paced", "us"),
    Row("added time to first token p50", "ms"),
    Row("added time to first token p99", "ms", at_most=3),
    Row("direct: time to first token p50", "ms"),
    Row("direct: time to first token p99", "ms"),
)


@dataclass(frozen=True)
class Relayed:
    """What came through in a time."""

    per_second: float
    cpu_us: float
    """Of the gateway, per chunk."""


def run(*, runs: int, seconds: float) -> list[Run]:
    """Start the stand, measure, end it."""
    with stand(FIRST, flags=("--max-concurrent-candidates", "1024")) as running:
        return repeat(runs, lambda: uvloop.run(once(running, seconds)))


async def once(running: Stand, seconds: float) -> Run:
    """One turn of everything."""
    watch = Watch(running.gateway.pid)
    tokens = max(50, round(250 * seconds))
    values: dict[str, float] = {}
    for burst, name in ((1, "one event a write"), (COALESCED, f"{COALESCED} events a write")):
        await running.policy.obey(VllmScript(tokens=tokens, burst=burst))
        relayed = await closed_loop(running, tokens, seconds)
        values |= {f"relayed, {name}": relayed.per_second, f"CPU per chunk, {name}": relayed.cpu_us}
    paced = await all_at_once(running, seconds)
    values[f"delivered of {OFFERED_PER_S} paced chunks/s"] = paced.per_second
    values["CPU per chunk, paced"] = paced.cpu_us
    await running.policy.obey(FIRST)
    firsts, lag_s = await first_tokens(running, seconds)
    return Run(values | firsts, watch.signs(lag_s))


async def closed_loop(running: Stand, tokens: int, seconds: float) -> Relayed:
    """Stream after stream on each connection, until the time is up."""
    pid, streams = running.gateway.pid, 0

    async def one_after_another() -> None:
        nonlocal streams
        while now() < until:
            check(await http.send("POST", CHAT, BODY), tokens)
            streams += 1

    async with HttpClient(running.gateway.url) as http:
        cpu, begin = cpu_seconds(pid), now()
        until = begin + seconds
        await asyncio.gather(*(one_after_another() for _ in range(CONNECTIONS)))
        took, used = now() - begin, cpu_seconds(pid) - cpu
    return Relayed(streams * tokens / took, used / (streams * tokens) * 1e6)


async def all_at_once(running: Stand, seconds: float) -> Relayed:
    """The paced streams, all at once. What arrives is counted from when they have all started."""
    tokens = round(TOKENS_PER_S * (seconds + 2 * SETTLE_S))
    await running.policy.obey(VllmScript(tokens=tokens, interval_ms=1000 / TOKENS_PER_S))
    pid, streams = running.gateway.pid, OFFERED_PER_S // TOKENS_PER_S

    async def one(index: int) -> Reply:
        await asyncio.sleep(index / streams * SETTLE_S / 2)
        return await http.send("POST", CHAT, BODY)

    async with HttpClient(running.gateway.url) as http:
        under_way = [asyncio.create_task(one(index)) for index in range(streams)]
        await asyncio.sleep(SETTLE_S)
        cpu, begin = cpu_seconds(pid), now()
        await asyncio.sleep(seconds)
        used, end = cpu_seconds(pid) - cpu, now()
        replies = await asyncio.gather(*under_way)
    for reply in replies:
        check(reply, tokens)
    chunks = sum(events_between(reply, begin, end) for reply in replies)
    return Relayed(chunks / (end - begin), used / chunks * 1e6)


def events_between(reply: Reply, begin: float, end: float) -> int:
    """Events that arrived in this time."""
    arrivals = zip(reply.pieces, reply.times, strict=True)
    return sum(piece.count(b"\n\n") for piece, at in arrivals if begin <= at < end)


async def first_tokens(running: Stand, seconds: float) -> tuple[dict[str, float], float]:
    """Times to the first token, and the generator's lag in s."""
    async with HttpClient(running.gateway.url) as gateway, HttpClient(running.policy.server.url) as direct:

        async def send(index: int) -> Answer:
            reply = await (direct if index % 2 else gateway).send("POST", CHAT, BODY)
            check(reply, FIRST.tokens)
            return Answer(first_at=reply.first_at, ended_at=reply.ended_at)

        await open_loop(send, rate=2 * FIRST_RATE, seconds=min(seconds, 0.5))  # opens the connections
        samples = await open_loop(send, rate=2 * FIRST_RATE, seconds=seconds)
    through, beside = firsts_ms(samples[::2]), firsts_ms(samples[1::2])
    direct_ms = percentile(beside, 0.5)
    values = {
        f"added time to first token p{s * 100:g}": percentile(through, s) - direct_ms for s in (0.5, 0.99)
    }
    values["direct: time to first token p50"] = direct_ms
    values["direct: time to first token p99"] = percentile(beside, 0.99)
    return values, lag_p99(samples)


def firsts_ms(samples: list[Sample]) -> list[float]:
    """Times to the first token, from the scheduled instant."""
    return [(s.answer.first_at - s.scheduled_at) * 1000 for s in samples if s.answer.first_at is not None]


def check(reply: Reply, tokens: int) -> None:
    """A stream that is not whole makes every figure worthless."""
    body = reply.body
    events = body.count(b"\n\n")
    if reply.status != 200 or events != tokens + 2 or not body.endswith(b"data: [DONE]\n\n"):
        said = reply.error or f"status {reply.status}, {events} events of {tokens + 2}"
        raise LoadTestError(f"a stream was not relayed whole: {said}", exit_code=1)


BENCH = Bench(
    name="stream-relay",
    help="chunks a second through one core, and the time added to the first token",
    flags=(Flag("runs", RUNS, "the median counts"), Flag("seconds", 4.0, "of each load")),
    rows=ROWS,
    run=run,
    takes_s=60,
)
