"""The scenarios: what each asks, when, and which of its requests are given up."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from loadtests import open_loop, prompts

MAX_IN_FLIGHT = 2000


@dataclass(frozen=True)
class Flag:
    """A setting of some scenarios: its type is its default's, a tuple's that of its first value."""

    name: str
    default: int | float | tuple[int, ...]
    help: str


MAX_TOKENS = Flag("max_tokens", 32, "of an answer")
BEST_OF = Flag("best_of", (1,), "the requests' best_of, in turns; 1 is not sent")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of load."""

    name: str
    help: str
    flags: Sequence[Flag]
    stream: bool = False


SCENARIOS = (
    Scenario(name="chat", help="plain chat completions", flags=(MAX_TOKENS, BEST_OF)),
    Scenario(
        name="stream",
        help="streamed chats: time to first token, and between tokens",
        flags=(MAX_TOKENS, BEST_OF),
        stream=True,
    ),
    Scenario(
        name="best-of-n",
        help="chats chosen out of N, several N mixed",
        flags=(MAX_TOKENS, Flag("best_of", (1, 4, 8), BEST_OF.help)),
    ),
    Scenario(
        name="burst",
        help="chats that come many at once, at the same rate over all",
        flags=(MAX_TOKENS, BEST_OF, Flag("burst", 20, "requests that come at once")),
    ),
    Scenario(
        name="long-prompt",
        help="chats with long prompts that share no prefix",
        flags=(MAX_TOKENS, BEST_OF, Flag("prompt_words", 1000, "of a prompt")),
    ),
    Scenario(
        name="score",
        help="the reward server's /score",
        flags=(Flag("responses", 8, "that a request has judged"),),
    ),
    Scenario(
        name="cancel",
        help="a storm of cancels: streams that most clients leave at a random moment",
        flags=(
            MAX_TOKENS,
            BEST_OF,
            Flag("cancel_share", 0.8, "of the requests that are cancelled, at most 1"),
            Flag("cancel_within", 1.0, "seconds: when at the latest"),
        ),
        stream=True,
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@dataclass(frozen=True, kw_only=True)
class Load:
    """A scenario and how hard it is driven. Settings that the scenario has no flag for do nothing."""

    scenario: str
    url: str
    rate: Sequence[float]
    seconds: float
    model: str | None = None
    api_key: str | None = None
    max_in_flight: int = MAX_IN_FLIGHT
    timeout: float = 120.0
    poisson: bool = False
    seed: int = 0
    prompts: str | None = None
    compare: str | None = None
    compare_model: str | None = None
    compare_api_key: str | None = None
    judge: str | None = None
    max_tokens: int = 32
    best_of: Sequence[int] = (1,)
    burst: int = 20
    prompt_words: int = 1000
    responses: int = 8
    cancel_share: float = 0.8
    cancel_within: float = 1.0

    @property
    def kind(self) -> Scenario:
        return BY_NAME[self.scenario]

    def instants(self, rate: float) -> list[float]:
        """When requests start, in seconds from the beginning: the same for the same settings."""
        if self.scenario == "burst":
            return open_loop.bursts(rate, self.seconds, self.burst)
        if self.poisson:
            return open_loop.poisson(rate, self.seconds, self.seed)
        return open_loop.schedule(rate, self.seconds)

    def best_of_of(self, index: int) -> int:
        """What the index-th request asks for."""
        return self.best_of[index % len(self.best_of)]

    def leaves_after(self, index: int) -> float | None:
        """Seconds after which the client of the index-th request hangs up; None: it stays."""
        random = Random(f"{self.seed}/{index}")
        leaves = self.scenario == "cancel" and random.random() < self.cancel_share
        return random.uniform(0, self.cancel_within) if leaves else None

    def command(self) -> str:
        """The command line that repeats this run; keys are left to the environment."""
        words = ["--url", self.url, "--rate", _joined(self.rate), "--seconds", f"{self.seconds:g}"]
        return shlex.join(["python", "-m", "loadtests", self.scenario, *words, *self.flags()])

    def flags(self) -> list[str]:
        """Those of the scenario, and of the common ones those that are not their defaults."""
        words = []
        for flag in self.kind.flags:
            value = getattr(self, flag.name)
            text = _joined(value) if isinstance(value, Sequence) else f"{value:g}"
            words += [f"--{flag.name.replace('_', '-')}", text]
        for name, default in COMMON.items():
            value = getattr(self, name)
            if value != default:
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return words


COMMON = {
    name: Load.__dataclass_fields__[name].default
    for name in (
        "model",
        "max_in_flight",
        "timeout",
        "poisson",
        "seed",
        "prompts",
        "compare",
        "compare_model",
        "judge",
    )
}
"""Settings of every scenario that a command line says only where they are not these."""
Ask = Callable[[int], prompts.Messages]


def asker(load: Load) -> Ask:
    """The conversation of the index-th request: of the user's file, in turns, or made up. LoadTestError when
    the file is none."""
    if load.prompts:
        given = prompts.read(Path(load.prompts))
        return lambda index: given[index % len(given)]
    if load.scenario == "long-prompt":
        return lambda index: prompts.long(index, load.prompt_words)
    return prompts.short


def request(load: Load, model: str, index: int, ask: Ask = prompts.short) -> tuple[str, dict[str, Any]]:
    """Path and body of the scenario's index-th request."""
    if load.scenario == "score":
        responses = prompts.answers(index, load.responses)
        return "/score", {"model": model, "messages": ask(index), "responses": responses}
    body: dict[str, Any] = {"model": model, "messages": ask(index), "max_tokens": load.max_tokens}
    if load.kind.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if load.best_of_of(index) > 1:
        body["best_of"] = load.best_of_of(index)
    return "/v1/chat/completions", body


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
