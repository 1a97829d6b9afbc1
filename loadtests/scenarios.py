"""The requests of each scenario, and the figures of a run."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.client import Client
from loadtests.figures import Figure, percentile
from loadtests.noise import MAX_LAG_S
from loadtests.open_loop import Answer, Sample, lag_p99, run

WORDS = "river stone lamp garden winter bread letter music harbour paper candle forest".split()


@dataclass(frozen=True, kw_only=True)
class Load:
    """A scenario and how hard it is driven."""

    scenario: str
    url: str
    rate: float
    seconds: float
    model: str | None = None
    best_of: int = 4
    responses: int = 8
    max_tokens: int = 32

    def command(self) -> str:
        """The command line that repeats this run."""
        flags = f"--url {self.url} --rate {self.rate:g} --seconds {self.seconds:g}"
        sizes = {
            "chat": f"--max-tokens {self.max_tokens}",
            "stream": f"--max-tokens {self.max_tokens}",
            "best-of-n": f"--max-tokens {self.max_tokens} --best-of {self.best_of}",
            "score": f"--responses {self.responses}",
        }[self.scenario]
        model = f" --model {shlex.quote(self.model)}" if self.model else ""
        return f"python -m loadtests {self.scenario} {flags} {sizes}{model}"


def request(load: Load, model: str, index: int) -> tuple[str, dict[str, Any]]:
    """Path and body of the scenario's index-th request; no two prompts in a row are alike."""
    words = [WORDS[(index * step + step) % len(WORDS)] for step in (1, 5, 7)]
    messages = [{"role": "user", "content": f"Write one sentence about {', '.join(words)} and {index}."}]
    if load.scenario == "score":
        responses = [f"A {words[k % 3]} is worth {k} lines." for k in range(load.responses)]
        return "/score", {"model": model, "messages": messages, "responses": responses}
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": load.max_tokens}
    if load.scenario == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if load.scenario == "best-of-n":
        body["best_of"] = load.best_of
    return "/v1/chat/completions", body


async def measure(load: Load) -> list[Figure]:
    """Drive the server and count. LoadTestError where there is none."""
    async with Client(load.url) as client:
        model = load.model or await client.first_model()

        async def send(index: int) -> Answer:
            return await client.ask(*request(load, model, index))

        return figures(load, await run(send, rate=load.rate, seconds=load.seconds))


def figures(load: Load, samples: Sequence[Sample]) -> list[Figure]:
    """What a run says. It is noisy where the generator lagged or the machine had other work."""
    good = [sample for sample in samples if sample.answer.error is None]
    errors = Counter(sample.answer.error for sample in samples if sample.answer.error is not None)
    lag = lag_p99(samples)
    noisy = lag > MAX_LAG_S or os.getloadavg()[0] > (os.cpu_count() or 1)
    duration = max(sample.answer.ended_at for sample in samples) - samples[0].scheduled_at
    latencies = [sample.latency_s * 1000 for sample in good]
    firsts = [
        (sample.answer.first_at - sample.scheduled_at) * 1000
        for sample in good
        if sample.answer.first_at is not None
    ]
    tokens = sum(sample.answer.tokens for sample in good)
    rows = [
        ("requests", len(samples), ""),
        ("answered", len(good) / duration, "1/s"),
        *((f"failed: {error}", count, "") for error, count in sorted(errors.items())),
        *((f"latency p{share * 100:g}", percentile(latencies, share), "ms") for share in (0.5, 0.9, 0.99)),
        *((f"first content p{s * 100:g}", percentile(firsts, s), "ms") for s in (0.5, 0.99) if firsts),
        ("tokens", tokens / duration, "1/s"),
        ("generator's own lag p99", lag * 1000, "ms"),
    ]
    command = load.command()
    return [
        Figure(figure=name, value=value, unit=unit, noisy=noisy, command=command)
        for name, value, unit in rows
    ]
