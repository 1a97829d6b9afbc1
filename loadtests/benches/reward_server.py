"""The reward server against plain transformers and against vLLM, on the same random-weights model of 15 M
parameters, in the same minutes; then alone on one of 100 M in bfloat16.

    python -m loadtests reward-server

The servers take turns, each with every core, and those whose turn it is not stand still. A best-of-16 has
a prompt of 256 words and answers of 64, a token each; its prompt is new every time. transformers reads the
16 full texts in one batch, and only its forward pass is timed; the servers are asked over HTTP, with
everything that is in it. vLLM runs as it does by default (float32, its cache of prefixes on), without
compilation.
"""

import asyncio
import os
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import uvloop

from loadtests.bench import RUNS, Bench, Flag
from loadtests.errors import LoadTestError
from loadtests.figures import Row, Run, repeat
from loadtests.gateway_metrics import scrape
from loadtests.http_client import HttpClient, now
from loadtests.judging import (
    Case,
    Judge,
    PlainForward,
    bonsai,
    inner_size,
    plain_forward,
    random_judge,
    vllm,
)
from loadtests.noise import Watch, other_work
from loadtests.processes import family_cpu_seconds, resident_bytes, standing_still

CLIENTS = 32
SLICES = 5
"""Of a comparison under load, in which the servers take turns: the machine is not the same all the time."""
TOLERANCE = 1e-4
"""Of scores, between servers that are compared: more would be another computation."""
SMALL, LARGE = (384, 8), (768, 13)
"""Hidden size and layers: 15.7 M and 100 M parameters."""
ROWS = (
    Row("32 clients, one conversation each: bonsai / vLLM", "x", at_least=1),
    Row("best-of-16, cold prompt: transformers' time / bonsai's", "x", at_least=3),
    Row("best-of-16, cold prompt: vLLM's time / bonsai's", "x", at_least=1.3),
    # On a machine with other work, what can be trusted. (Waiting threads of vLLM's spin, and count.)
    Row("32 clients: CPU per conversation, vLLM / bonsai", "x"),
    Row("best-of-16, cold prompt: CPU, vLLM / bonsai", "x"),
    Row("one conversation, idle: added to the bare forward p50", "ms", at_most=3),
    Row("memory over the weights, saturated, 100 M bfloat16", "GiB", at_most=1),
    Row("share of the matrix-product rate, 100 M bfloat16", "x"),
    Row("32 clients: bonsai", "1/s"),
    Row("32 clients: vLLM", "1/s"),
    Row("best-of-16, cold prompt: bonsai", "ms"),
    Row("best-of-16, known prompt: bonsai", "ms"),
    Row("best-of-16, cold prompt: vLLM", "ms"),
    Row("best-of-16: 16 full texts in one transformers batch", "ms"),
    Row("largest matrix-product rate, bfloat16", "GFLOPS"),
)


def run(*, runs: int, seconds: float, threads: int) -> list[Run]:
    """Start each model's servers, measure, end them."""
    with ExitStack() as running:
        folder = running.enter_context(random_judge(*SMALL))
        plain = running.enter_context(plain_forward(folder, "float32", threads))
        ours = running.enter_context(bonsai(folder, "float32", threads))
        theirs = running.enter_context(vllm(folder, "float32", threads))
        against = repeat(runs, lambda: uvloop.run(compare(plain, ours, theirs, seconds)))
    with ExitStack() as running:
        folder = running.enter_context(random_judge(*LARGE))
        weights = (folder / "model.safetensors").stat().st_size // 2  # saved in float32
        plain = running.enter_context(plain_forward(folder, "bfloat16", threads))
        ours = running.enter_context(bonsai(folder, "bfloat16", threads))
        alone = repeat(runs, lambda: uvloop.run(saturate(plain, ours, weights, seconds)))
    return [
        Run({**one.values, **other.values}, [*one.signs, *other.signs])
        for one, other in zip(against, alone, strict=True)
    ]


async def compare(plain: PlainForward, ours: Judge, theirs: Judge, seconds: float) -> Run:
    """One run of what is measured against others."""
    drawn = random.Random(os.urandom(8))
    turns = Turns({"transformers": plain.pid, "bonsai": ours.server.pid, "vLLM": theirs.server.pid})
    with turns.nobodys():
        signs = other_work()
    watch = Watch(ours.server.pid)
    async with HttpClient(ours.server.url) as to_ours, HttpClient(theirs.server.url) as to_theirs:
        asks = {"bonsai": ask(ours, to_ours), "vLLM": ask(theirs, to_theirs)}
        times = await best_of_16(drawn, turns, plain, asks, seconds)
        added = await one_by_one(drawn, turns, plain, asks["bonsai"], seconds)
        used = {name: Used() for name in asks}
        for _ in range(SLICES):
            for name, judge in {"bonsai": ours, "vLLM": theirs}.items():
                with turns.of(name):
                    await used[name].add(judge, asks[name], drawn, seconds / SLICES)
    rates = {name: one.answers / one.seconds for name, one in used.items()}
    cpu = {name: one.cpu_s / one.answers for name, one in used.items()}
    cpu_of_16 = {name: one.cpu_of_16_s for name, one in used.items()}
    values = {
        "32 clients, one conversation each: bonsai / vLLM": rates["bonsai"] / rates["vLLM"],
        "best-of-16, cold prompt: transformers' time / bonsai's": times["transformers"] / times["bonsai"],
        "best-of-16, cold prompt: vLLM's time / bonsai's": times["vLLM"] / times["bonsai"],
        "32 clients: CPU per conversation, vLLM / bonsai": cpu["vLLM"] / cpu["bonsai"],
        "best-of-16, cold prompt: CPU, vLLM / bonsai": cpu_of_16["vLLM"] / cpu_of_16["bonsai"],
        "one conversation, idle: added to the bare forward p50": added * 1000,
        "32 clients: bonsai": rates["bonsai"],
        "32 clients: vLLM": rates["vLLM"],
        "best-of-16, cold prompt: bonsai": times["bonsai"] * 1000,
        "best-of-16, known prompt: bonsai": times["known"] * 1000,
        "best-of-16, cold prompt: vLLM": times["vLLM"] * 1000,
        "best-of-16: 16 full texts in one transformers batch": times["transformers"] * 1000,
    }
    return Run(values, signs + watch.signs())


@dataclass
class Used:
    """What a server used and did, under load."""

    answers: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    cpu_of_16_s: float = 0.0
    """For best-of-16, one after the other."""

    async def add(self, judge: Judge, send: "Ask", drawn: random.Random, seconds: float) -> None:
        """Loads it for a while, then asks for a best-of-16."""
        before, started = family_cpu_seconds(judge.server.pid), now()
        self.answers += await closed_loop(drawn, send, seconds)
        self.seconds += now() - started
        between = family_cpu_seconds(judge.server.pid)
        await send(draw_best_of_16(drawn))
        self.cpu_s += between - before
        self.cpu_of_16_s += family_cpu_seconds(judge.server.pid) - between


class Turns:
    """Of processes that are measured one after the other."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids

    def of(self, name: str) -> AbstractContextManager[None]:
        """Only this one runs."""
        return standing_still(*(pid for other, pid in self._pids.items() if other != name))

    def nobodys(self) -> AbstractContextManager[None]:
        """None of them runs."""
        return standing_still(*self._pids.values())


Ask = Callable[[Case], Awaitable[list[float]]]


def ask(judge: Judge, http: HttpClient) -> Ask:
    """A judge, by its connection."""

    async def send(case: Case) -> list[float]:
        return await judge.scores(http, case)

    return send


async def best_of_16(
    drawn: random.Random, turns: Turns, plain: PlainForward, asks: Mapping[str, Ask], seconds: float
) -> dict[str, float]:
    """Seconds, the median of rounds in which everybody gets the same new case, by name; "known" is ours, with
    other answers to the prompt."""
    times: dict[str, list[float]] = {name: [] for name in ("transformers", "known", *asks)}
    end = now() + 2 * seconds
    while not times["known"] or now() < end:
        case = draw_best_of_16(drawn)
        with turns.of("transformers"):
            answer = plain.ask(case.rendered())
        times["transformers"].append(answer["seconds"])
        for name, send in asks.items():
            with turns.of(name):
                started = now()
                scores = await send(case)
                times[name].append(now() - started)
            check(name, scores, answer["scores"])
        again = Case(case.prompt, draw_best_of_16(drawn).answers)
        with turns.of("bonsai"):
            started = now()
            await asks["bonsai"](again)
            times["known"].append(now() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def draw_best_of_16(drawn: random.Random) -> Case:
    """A prompt four times as long as its answers."""
    return Case.draw(drawn, prompt=256, answers=16, answer=64)


def check(name: str, scores: list[float], expected: list[float]) -> None:
    """LoadTestError where a judge computes something else."""
    if any(abs(one - other) > TOLERANCE for one, other in zip(scores, expected, strict=True)):
        raise LoadTestError(f"{name} scores otherwise than transformers", exit_code=1)


def draw_conversation(drawn: random.Random) -> Case:
    """Of a chat's length; no two alike."""
    return Case.draw(drawn, prompt=drawn.randint(30, 130), answers=1, answer=drawn.randint(20, 60))


async def one_by_one(
    drawn: random.Random, turns: Turns, plain: PlainForward, send: Ask, seconds: float
) -> float:
    """What the median conversation waits beyond the median of plain forward passes on the same texts."""
    bare: list[float] = []
    whole: list[float] = []
    end = now() + seconds
    while not bare or now() < end:
        case = draw_conversation(drawn)
        with turns.of("transformers"):
            bare.append(plain.ask(case.rendered())["seconds"])
        with turns.of("bonsai"):
            started = now()
            await send(case)
            whole.append(now() - started)
    return statistics.median(whole) - statistics.median(bare)


async def closed_loop(drawn: random.Random, send: Ask, seconds: float) -> int:
    """How many conversations were judged, with CLIENTS that each wait for an answer before they ask again."""
    done = 0

    async def client() -> None:
        nonlocal done
        while now() < end:
            await send(draw_conversation(drawn))
            done += 1

    end = now() + seconds
    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(client())
    return done


async def saturate(plain: PlainForward, ours: Judge, weights: int, seconds: float) -> Run:
    """One run of what is measured alone: matrix products of all tokens that were computed, two operations a
    weight and token, against the best rate of one large product."""
    drawn = random.Random(os.urandom(8))
    signs = other_work()
    watch = Watch(ours.server.pid)
    flops = plain.ask([])["flops"]
    async with HttpClient(ours.server.url) as http:
        send = ask(ours, http)
        await closed_loop(drawn, send, 1.0)
        before, started = await computed_tokens(ours), now()
        await closed_loop(drawn, send, seconds)
        tokens, took = await computed_tokens(ours) - before, now() - started
        memory = resident_bytes(ours.server.pid)
    done = 2 * weights_per_token(*LARGE) * tokens / took
    values = {
        "memory over the weights, saturated, 100 M bfloat16": (memory - weights) / 2**30,
        "share of the matrix-product rate, 100 M bfloat16": done / flops,
        "largest matrix-product rate, bfloat16": flops / 1e9,
    }
    return Run(values, signs + watch.signs())


def weights_per_token(hidden: int, layers: int) -> int:
    """That a token is multiplied with: all of every layer, but of the last only those for queries, keys and
    values, as the rest is computed for last tokens alone. Attention's own products are not counted."""
    inner = inner_size(hidden)
    return (layers - 1) * (4 * hidden**2 + 3 * hidden * inner) + 3 * hidden**2


async def computed_tokens(judge: Judge) -> float:
    """That the server counts."""
    return (await scrape(judge.server.url))["bonsai_rm_computed_tokens_total", ()]


BENCH = Bench(
    name="reward-server",
    help="the reward server against transformers and vLLM",
    flags=(
        Flag("runs", RUNS, "the median counts"),
        Flag("seconds", 10.0, "of each part"),
        Flag("threads", len(os.sched_getaffinity(0)), "of each server"),
    ),
    rows=ROWS,
    run=run,
    takes_s=240,
)
