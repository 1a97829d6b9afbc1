"""How soon all work ends when a client goes away, and whether anything is left behind.

    python -m loadtests disconnect

Cases: requests are cut at a random moment of each phase: waiting (the policy has not begun to answer),
streaming (a plain stream runs), generating (best_of 8, candidates run) and judging (all have ended, the
reward model works). Counted is the time from the client's hanging up until the last of the request's calls
upstream has seen its own caller go, by the fakes' clock, which is the client's.

Then requests of all kinds are cut at random moments, early, in the middle and at the end; afterwards nothing
may be in flight, no slot held, no call open upstream, and 100 ordinary requests must be answered.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.client import understand
from loadtests.fakes.records import Record
from loadtests.fakes.script import RewardScript, VllmScript
from loadtests.figures import Row, Run, percentile, repeat
from loadtests.gateway_metrics import scrape, under_way
from loadtests.http_client import HttpClient, now
from loadtests.noise import Watch
from loadtests.stand import Stand, stand

CHAT = "/v1/chat/completions"
LONG_MS = 60_000
CUT_AFTER_S = (0.1, 0.4)
"""When a case is cut: its phase has begun by then, and lasts."""
APART_S = 0.02
"""Between the starts of two cases."""
SEEN_WITHIN_S = 5.0
"""What has not ended by then counts as never."""
NORMAL = 100
STORM_AT_ONCE = 64
STORM_POLICY = VllmScript(delay_ms=10, tokens=16, tokens_step=2, interval_ms=2)
STORM_REWARD = RewardScript(delay_ms=10)
STORM_CUT_WITHIN_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A moment in a request's life, and what makes it last."""

    name: str
    body: dict[str, Any]
    policy: VllmScript
    reward: RewardScript = field(default_factory=RewardScript)
    judging: bool = False
    """The call that is cut is the reward model's."""


PHASES = (
    Phase(name="waiting", body={}, policy=VllmScript(delay_ms=LONG_MS)),
    Phase(name="streaming", body={"stream": True}, policy=VllmScript(tokens=6000, interval_ms=10)),
    Phase(
        name="generating",
        body={"best_of": 8},
        policy=VllmScript(tokens=4, tokens_step=1000, interval_ms=10),
    ),
    Phase(
        name="judging",
        body={"best_of": 8},
        policy=VllmScript(tokens=4),
        reward=RewardScript(delay_ms=LONG_MS),
        judging=True,
    ),
)
ROWS = (
    Row("client gone until all upstream work ended, p50", "ms"),
    Row("client gone until all upstream work ended, p99", "ms", at_most=250),
    *(Row(f"{phase.name}: p99", "ms", at_most=250) for phase in PHASES),
    Row("cases that were not in their phase", at_most=0, worst=True),
    Row("random cancels"),
    Row("after them: requests and slots still held", at_most=0, worst=True),
    Row("after them: calls still open upstream", at_most=0, worst=True),
    Row(f"after them: of {NORMAL} ordinary requests answered", at_least=NORMAL, worst=True),
)


def run(*, runs: int, cases: int, cancels: int) -> list[Run]:
    """Start the stand, measure, end it. The cancels are shared out over the runs."""
    with stand(STORM_POLICY, reward=STORM_REWARD) as running:
        found = repeat(runs, lambda: uvloop.run(all_phases(running, cases)))
        left = uvloop.run(storm(running, cancels))
    return [Run({**one.values, **left}, one.signs) for one in found]


async def all_phases(running: Stand, cases: int) -> Run:
    """Every phase in turn."""
    watch, values, everything, missed = Watch(running.gateway.pid), {}, [], 0
    for phase in PHASES:
        taken = await cut_cases(running, phase, max(1, cases // len(PHASES)))
        missed += sum(math.isnan(seconds) for seconds in taken)
        counted = [seconds * 1000 for seconds in taken if not math.isnan(seconds)]
        values[f"{phase.name}: p99"] = percentile(counted, 0.99)
        everything += counted
    for share in (0.5, 0.99):
        name = f"client gone until all upstream work ended, p{share * 100:g}"
        values[name] = percentile(everything, share)
    return Run(values | {"cases that were not in their phase": float(missed)}, watch.signs())


async def cut_cases(running: Stand, phase: Phase, cases: int) -> list[float]:
    """Seconds from the cut to the end of all work, case by case; inf where it did not end, nan where the
    phase had not begun or was over."""
    await running.policy.obey(phase.policy)
    await running.rewards[0].obey(phase.reward)
    random = Random(phase.name)
    prompts = [f"{phase.name} {index}" for index in range(cases)]
    async with HttpClient(running.gateway.url) as http:

        async def one(index: int, prompt: str) -> float:
            await asyncio.sleep(index * APART_S)
            return await cut(http, request(prompt, phase.body), random.uniform(*CUT_AFTER_S))

        gone_at = await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts)))
        await at_rest(running)
    calls = [record for fake in running.fakes for record in await fake.records()]
    for fake in running.fakes:
        await fake.forget()
    return [
        until_all_ended([call for call in calls if call.prompt == prompt], phase, at)
        for prompt, at in zip(prompts, gone_at, strict=True)
    ]


async def cut(http: HttpClient, body: bytes, after_s: float) -> float:
    """Send a request and hang up on it; when, by the clock. nan where the answer was faster."""
    sending = asyncio.create_task(http.send("POST", CHAT, body))
    await asyncio.wait({sending}, timeout=after_s)
    gone_at = math.nan if sending.done() else now()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    return gone_at


def until_all_ended(calls: Sequence[Record], phase: Phase, gone_at: float) -> float:
    """Seconds from the cut to the end of the last of one request's calls; see `cut_cases`."""
    wanted = [call for call in calls if (call.path == "/score") == phase.judging]
    if not any(call.ended_at is None or call.ended_at > gone_at for call in wanted):
        return math.nan
    ends = [call.aborted_at or call.ended_at or math.inf for call in calls]
    return max(0.0, max(ends) - gone_at)


async def at_rest(running: Stand) -> tuple[float, int]:
    """Wait until nothing is under way; what still is when the patience ends: in the gateway, and open
    calls upstream."""
    until = now() + SEEN_WITHIN_S
    while True:
        held = under_way(await scrape(running.gateway.url))
        open_calls = sum([(await fake.state()).open for fake in running.fakes])
        if (held == 0 and open_calls == 0) or now() > until:
            return held, open_calls
        await asyncio.sleep(0.05)


async def storm(running: Stand, cancels: int) -> dict[str, float]:
    """Cut requests of all kinds; what is left of them."""
    await running.policy.obey(STORM_POLICY)
    await running.rewards[0].obey(STORM_REWARD)
    random, done = Random(1), 0
    kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"best_of": 8}, {"best_of": 8, "stream": True}]
    async with HttpClient(running.gateway.url) as http:

        async def cut_on_and_on() -> None:
            nonlocal done
            while done < cancels:
                body = request("storm", random.choice(kinds))
                at = await cut(http, body, random.uniform(0, STORM_CUT_WITHIN_S))
                done += not math.isnan(at)

        await asyncio.gather(*(cut_on_and_on() for _ in range(STORM_AT_ONCE)))
        held, open_calls = await at_rest(running)
        normal = [kinds[index % len(kinds)] for index in range(NORMAL)]
        replies = await asyncio.gather(*(http.send("POST", CHAT, request("after", body)) for body in normal))
        answers = [
            understand(reply, streamed="stream" in body) for reply, body in zip(replies, normal, strict=True)
        ]
    for fake in running.fakes:
        await fake.forget()
    return {
        "random cancels": float(done),
        "after them: requests and slots still held": held,
        "after them: calls still open upstream": float(open_calls),
        f"after them: of {NORMAL} ordinary requests answered": float(
            sum(answer.error is None for answer in answers)
        ),
    }


def request(prompt: str, fields: dict[str, Any]) -> bytes:
    """A chat."""
    body = {"model": "fake", "messages": [{"role": "user", "content": prompt}]}
    return msgspec.json.encode(body | fields)


BENCH = Bench(
    name="disconnect",
    help="how soon all work ends when a client goes away",
    flags=(
        Flag("runs", RUNS, "of the cases; the median counts"),
        Flag("cases", 200, "a run, shared out over the phases"),
        Flag("cancels", 10_000, "at random moments, in all"),
    ),
    rows=ROWS,
    run=run,
    takes_s=70,
)
