"""What best-of-N costs beyond generating and judging.

    python -m loadtests best-of-n-overhead

A fake vLLM server streams 8 candidates that end one after the other, the last after some 0.4 s; a fake reward
server takes 15 ms. Counted is the time from the later of the last candidate's end and the last reward's
arrival, as the fakes handed them to their sockets, until the client has the whole answer: by one clock, and
with both ways over the loopback in it. Every other answer is streamed.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.client import UNREADABLE, understand
from loadtests.fakes.records import Record
from loadtests.fakes.script import RewardScript, VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.http_client import HttpClient, Reply
from loadtests.noise import Watch
from loadtests.open_loop import Answer, Sample, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.processes import cpu_seconds
from loadtests.stand import Stand, stand

CHAT = "/v1/chat/completions"
BEST_OF = 8
POLICY = VllmScript(delay_ms=20, tokens=24, tokens_step=8, interval_ms=5)
REWARD = RewardScript(delay_ms=15)
ROWS = (
    Row("beyond generating and judging p50", "ms", at_most=3),
    Row("beyond generating and judging p99", "ms", at_most=12),
    Row("whole answer p50", "ms"),
    Row("CPU per request", "ms"),
    Row("failed, or not all candidates scored", at_most=0, worst=True),
)


def run(*, runs: int, rate: float, seconds: float) -> list[Run]:
    """Start the stand, measure, end it."""
    with stand(POLICY, reward=REWARD) as running:
        return repeat(runs, lambda: uvloop.run(once(running, rate, seconds)))


async def once(running: Stand, rate: float, seconds: float) -> Run:
    """One open loop."""
    async with HttpClient(running.gateway.url) as http:

        async def send(index: int) -> Answer:
            body = request(index)
            reply = await http.send("POST", CHAT, msgspec.json.encode(body))
            return judged(reply, streamed=body["stream"])

        await open_loop(send, rate=rate, seconds=min(seconds, 0.5))  # opens the connections
        for fake in running.fakes:
            await fake.forget()
        watch, cpu = Watch(running.gateway.pid), cpu_seconds(running.gateway.pid)
        samples = await open_loop(send, rate=rate, seconds=seconds)
        used = cpu_seconds(running.gateway.pid) - cpu
    ready = answers_could_be_sent(await running.policy.records(), await running.rewards[0].records())
    values = figures(samples, ready) | {"CPU per request": used / len(samples) * 1000}
    return Run(values, watch.signs(lag_p99(samples)))


def request(index: int) -> dict[str, Any]:
    """The index-th body; its prompt is found again in the fakes' records."""
    message = {"role": "user", "content": prompt(index)}
    return {"model": "fake", "messages": [message], "best_of": BEST_OF, "stream": index % 2 == 1}


def prompt(index: int) -> str:
    """What tells the index-th request from the others."""
    return f"Question {index}: what runs past the stone?"


def judged(reply: Reply, *, streamed: bool) -> Answer:
    """The answer; an error where it was not chosen out of all."""
    answer = understand(reply, streamed=streamed)
    if answer.error is None and scored(reply.body, streamed=streamed) != BEST_OF:
        answer.error = "not all scored"
    return answer


def scored(body: bytes, *, streamed: bool) -> int:
    """How many candidates an answer says were scored; 0 where it does not say."""
    parts = [line[5:] for line in body.split(b"\n") if b'"alignment"' in line] if streamed else [body]
    try:
        return int(msgspec.json.decode(parts[-1])["alignment"]["scored"])
    except UNREADABLE:
        return 0


def answers_could_be_sent(*servers: Sequence[Record]) -> dict[str, float]:
    """By prompt, the instant of the last candidate's end or the last reward, whichever is later."""
    ready: dict[str, float] = {}
    for records in servers:
        for record in records:
            at = record.first_at if record.candidates_at is None else record.candidates_at
            if at is not None:
                ready[record.prompt] = max(at, ready.get(record.prompt, at))
    return ready


def figures(samples: Sequence[Sample], ready: dict[str, float]) -> dict[str, float]:
    """Of the answers that are whole."""
    good = [(index, sample) for index, sample in enumerate(samples) if sample.answer.error is None]
    beyond = [(sample.answer.ended_at - ready[prompt(index)]) * 1000 for index, sample in good]
    return {
        "beyond generating and judging p50": percentile(beyond, 0.5),
        "beyond generating and judging p99": percentile(beyond, 0.99),
        "whole answer p50": percentile([sample.latency_s * 1000 for _, sample in good], 0.5),
        "failed, or not all candidates scored": float(len(samples) - len(good)),
    }


BENCH = Bench(
    name="best-of-n-overhead",
    help="what best_of 8 costs beyond generating and judging",
    flags=(
        Flag("runs", RUNS, "the median counts"),
        Flag("rate", 20.0, "requests a second"),
        Flag("seconds", 15.0, "of arrivals"),
    ),
    rows=ROWS,
    run=run,
    takes_s=55,
)
