"""What clients see when a policy replica dies, and how much retrying costs when all of them fail.

    python -m loadtests replica-kill

Two fake vLLM servers; one is killed (SIGKILL) while requests, every other one streamed, come by the clock.
Whose answer had not begun must not notice; whose stream had begun must be told by an error event. Then, with
two fresh ones, both answer every call with a 500, and both reset every connection: calls upstream by requests
must stay near 1.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.fakes.script import Fault, VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.http_client import HttpClient, Reply
from loadtests.noise import Watch
from loadtests.open_loop import Answer, Sample, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.outcomes import outcome
from loadtests.stand import Fake, Stand, stand

CHAT = "/v1/chat/completions"
HEALTHY = VllmScript(delay_ms=50, tokens=20, interval_ms=5)
FAILING = {
    "answering 500": VllmScript(faults=(Fault(kind="status"),)),
    "resetting": VllmScript(faults=(Fault(kind="reset"),)),
}
MOST = 1.1
"""Calls upstream by requests of clients: Google's and Envoy's budgets are 1.1 and 1.2."""
ROWS = (
    Row("one killed: errors before the first byte", at_most=0, worst=True),
    Row("one killed: streams cut without an error event", at_most=0, worst=True),
    Row("one killed: streams that had begun, told by an error event"),
    Row("one killed: calls upstream / requests", "x", at_most=MOST, worst=True),
    Row("one killed: its calls before", at_least=1, worst=True),
    Row("one killed: latency p50", "ms"),
    Row("one killed: latency p99", "ms"),
    *(Row(f"both {name}: calls upstream / requests", "x", at_most=MOST, worst=True) for name in FAILING),
    *(Row(f"both {name}: requests without the error envelope", at_most=0, worst=True) for name in FAILING),
)


def run(*, runs: int, rate: float, seconds: float) -> list[Run]:
    """Start a stand for each part, measure, end it."""

    def once() -> Run:
        with stand(HEALTHY, HEALTHY) as running:
            killed = uvloop.run(one_killed(running, rate, seconds))
        values = dict(killed.values)
        for name, script in FAILING.items():
            with stand(HEALTHY, HEALTHY) as running:
                values |= uvloop.run(all_failing(running, name, script, rate, seconds))
        return Run(values, killed.signs)

    return repeat(runs, once)


async def one_killed(running: Stand, rate: float, seconds: float) -> Run:
    """Kill the first replica after a third of the time. Its calls are those that it had counted just before:
    what came in between the look and the kill, a millisecond or two, is not in them."""
    replies: list[tuple[Reply, bool]] = []
    watch, victim = Watch(running.gateway.pid), running.policies[0]

    async def kill() -> int:
        await asyncio.sleep(seconds / 3)
        calls = (await victim.state()).calls
        victim.server.process.kill()
        return calls

    killing = asyncio.create_task(kill())
    samples = await load(running, rate, seconds, replies)
    before = await killing
    calls = before + await calls_of(running.policies[1:])
    latencies = [sample.latency_s * 1000 for sample in samples if sample.answer.status == 200]
    values = {
        "one killed: calls upstream / requests": calls / len(samples),
        "one killed: its calls before": float(before),
        "one killed: latency p50": percentile(latencies, 0.5),
        "one killed: latency p99": percentile(latencies, 0.99),
    }
    return Run(values | seen(replies), watch.signs(lag_p99(samples)))


def seen(replies: list[tuple[Reply, bool]]) -> dict[str, float]:
    """What clients saw of the kill."""
    begun: Counter[str] = Counter()
    errors = 0
    for reply, streamed in replies:
        found = outcome(reply, streamed=streamed)
        if streamed and reply.status == 200 and reply.times:
            begun[found] += 1
        else:
            errors += found != "answered"
    return {
        "one killed: errors before the first byte": float(errors),
        "one killed: streams cut without an error event": float(begun["broken"]),
        "one killed: streams that had begun, told by an error event": float(begun["declared"]),
    }


async def all_failing(
    running: Stand, name: str, script: VllmScript, rate: float, seconds: float
) -> dict[str, float]:
    """Some healthy traffic, as there is before any outage; then nothing but failures."""
    replies: list[tuple[Reply, bool]] = []
    await load(running, rate, min(1.0, seconds), replies)
    for fake in running.policies:
        await fake.obey(script)
    before = await calls_of(running.policies)
    replies.clear()
    samples = await load(running, rate, seconds, replies)
    calls = await calls_of(running.policies) - before
    unsaid = sum(outcome(reply, streamed=streamed) != "refused" for reply, streamed in replies)
    return {
        f"both {name}: calls upstream / requests": calls / len(samples),
        f"both {name}: requests without the error envelope": float(unsaid),
    }


async def calls_of(fakes: Sequence[Fake]) -> int:
    """Calls that they have had."""
    return sum([(await fake.state()).calls for fake in fakes])


async def load(
    running: Stand, rate: float, seconds: float, replies: list[tuple[Reply, bool]]
) -> list[Sample]:
    """An open loop, every other request streamed; the replies are added to `replies`."""
    async with HttpClient(running.gateway.url) as http:

        async def send(index: int) -> Answer:
            streamed = index % 2 == 1
            message = {"role": "user", "content": f"Question {index}"}
            body = {"model": "fake", "messages": [message], "stream": streamed}
            reply = await http.send("POST", CHAT, msgspec.json.encode(body))
            replies.append((reply, streamed))
            return Answer(ended_at=reply.ended_at, status=reply.status)

        return await open_loop(send, rate=rate, seconds=seconds)


BENCH = Bench(
    name="replica-kill",
    help="a policy replica dies; then all fail",
    flags=(
        Flag("runs", RUNS, "the median, or the worst, counts"),
        Flag("rate", 100.0, "requests a second"),
        Flag("seconds", 6.0, "of each part"),
    ),
    rows=ROWS,
    run=run,
    takes_s=75,
)
