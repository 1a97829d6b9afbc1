"""What becomes of a gateway that is offered three times what it can take.

    python -m loadtests overload

The gateway admits 32 candidates at a time, and the fake vLLM server takes 200 ms over each: 160 requests a
second are its capacity, and not more than what its core can do. As many may wait. It gets half of that
(unloaded), then three times that for a minute, then half again. Good are answers that came within the minute;
recovered it is when no request that was sent later is refused or takes more than 1.5 times the unloaded p99.
"""

from collections.abc import Sequence

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.client import understand
from loadtests.fakes.script import VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.gateway_metrics import scrape, under_way
from loadtests.http_client import HttpClient
from loadtests.noise import Watch
from loadtests.open_loop import Answer, Sample, lag_p99
from loadtests.open_loop import run as open_loop
from loadtests.stand import Stand, stand

CHAT = "/v1/chat/completions"
SLOTS = 32
SERVICE_S = 0.2
CAPACITY = SLOTS / SERVICE_S
UNLOADED_S, AFTER_S = 5.0, 5.0
FLAGS = {
    "--max-best-of": SLOTS,
    "--max-candidates-per-request": SLOTS,
    "--max-concurrent-candidates": SLOTS,
    "--max-queue": SLOTS,
}
BODY = msgspec.json.encode({"model": "fake", "messages": [{"role": "user", "content": "What is overload?"}]})
REFUSALS = {429, 503}
ROWS = (
    Row("goodput / capacity", "x", at_least=0.95),
    Row("requests without a whole answer or a refusal", at_most=0, worst=True),
    Row("refusals without a whole number of seconds in Retry-After", at_most=0, worst=True),
    Row("accepted p99 / unloaded p99", "x", at_most=2.5),
    Row("refused p99", "ms", at_most=25),
    Row("recovery", "s", at_most=2),
    Row("afterwards: requests and slots still held", at_most=0, worst=True),
    Row("capacity", "1/s"),
    Row("offered", "1/s"),
    Row("unloaded p99", "ms"),
    Row("refused", "1/s"),
)


def run(*, runs: int, times: float, seconds: float) -> list[Run]:
    """Start the stand, measure, end it."""
    flags = [word for flag, value in FLAGS.items() for word in (flag, str(value))]
    with stand(VllmScript(delay_ms=SERVICE_S * 1000), flags=flags) as running:
        return repeat(runs, lambda: uvloop.run(once(running, times, seconds)))


async def once(running: Stand, times: float, seconds: float) -> Run:
    """Half load, overload, half load, without a pause between."""
    async with HttpClient(running.gateway.url) as http:

        async def send(_: int) -> Answer:
            reply = await http.send("POST", CHAT, BODY)
            answer = understand(reply, streamed=False)
            if reply.status in REFUSALS and reply.error is None:
                waits = reply.headers.get("retry-after", "")
                answer.error = "refused" if waits.isdigit() else "refused without Retry-After"
            return answer

        half = CAPACITY / 2
        await open_loop(send, rate=half, seconds=min(1.0, seconds))  # opens the connections
        watch = Watch(running.gateway.pid)
        unloaded = await open_loop(send, rate=half, seconds=min(UNLOADED_S, seconds))
        phases = [(times * CAPACITY, seconds), (half, min(AFTER_S, seconds))]
        samples = await open_loop(send, rate=phases[0][0], seconds=seconds, then=phases[1])
        held = under_way(await scrape(running.gateway.url))
    begin = samples[0].scheduled_at
    values = figures(samples, begin, begin + seconds, percentile(latencies(unloaded), 0.99))
    values |= {"capacity": CAPACITY, "offered": times * CAPACITY}
    values["afterwards: requests and slots still held"] = held
    return Run(values, watch.signs(lag_p99(samples)))


def figures(samples: Sequence[Sample], begin: float, end: float, unloaded_s: float) -> dict[str, float]:
    """What the overload from `begin` to `end` came to."""
    over = [sample for sample in samples if sample.scheduled_at < end]
    good = [sample for sample in over if sample.answer.error is None]
    refused = [sample for sample in over if (sample.answer.error or "").startswith("refused")]
    in_time = sum(sample.answer.ended_at <= end for sample in good)
    unanswered = sum(not (sample.answer.error or "refused").startswith("refused") for sample in samples)
    return {
        "goodput / capacity": in_time / (end - begin) / CAPACITY,
        "requests without a whole answer or a refusal": float(unanswered),
        "refusals without a whole number of seconds in Retry-After": float(
            sum(sample.answer.error == "refused without Retry-After" for sample in samples)
        ),
        "accepted p99 / unloaded p99": percentile(latencies(over), 0.99) / unloaded_s,
        "refused p99": percentile([sample.latency_s * 1000 for sample in refused], 0.99),
        "recovery": recovery_s(samples, end, 1.5 * unloaded_s),
        "unloaded p99": unloaded_s * 1000,
        "refused": len(refused) / (end - begin),
    }


def latencies(samples: Sequence[Sample]) -> list[float]:
    """Seconds, of whole answers."""
    return [sample.latency_s for sample in samples if sample.answer.error is None]


def recovery_s(samples: Sequence[Sample], end: float, limit_s: float) -> float:
    """From the overload's end to the last request that was still refused, failed or slow; 0 of none."""
    bad = [
        sample.scheduled_at - end
        for sample in samples
        if sample.scheduled_at >= end and (sample.answer.error is not None or sample.latency_s > limit_s)
    ]
    return max(bad, default=0.0)


BENCH = Bench(
    name="overload",
    help="three times the gateway's capacity for a minute",
    flags=(
        Flag("runs", RUNS, "the median counts"),
        Flag("times", 3.0, "the capacity is offered"),
        Flag("seconds", 60.0, "of overload"),
    ),
    rows=ROWS,
    run=run,
    takes_s=225,
)
