"""Every metric, once. Names start with `bonsai_gateway_`; labels are bounded: no key, user, prompt or request
id.

Each application has its own registry, so that several can live in one process.
"""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "bonsai_gateway_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
SELF_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
GAINS = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5)


class Metrics:
    """The gateway's instruments, one attribute each."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._makers()
        self.requests = counter("requests", "Requests answered.", ["route", "model", "code"])
        self.request_seconds = histogram(
            "request_seconds",
            "From the request's arrival to the last byte of its answer.",
            ["route"],
            SECONDS,
        )
        self.in_flight = gauge("in_flight_requests", "Requests being served.")
        self.slots = gauge("candidate_slots_in_use", "Samples being generated, of those admitted.")
        self.waiting = gauge("queued_requests", "Requests waiting for candidate slots.")
        self.queue_seconds = histogram("queue_seconds", "Wait for candidate slots.", [], SECONDS)
        self.rejected = counter("rejected", "Requests refused at admission.", ["reason"])
        self.upstream_seconds = histogram(
            "upstream_seconds", "One request to the policy, until its last byte.", ["mode"], SECONDS
        )
        self.self_seconds = histogram(
            "self_seconds",
            "The gateway's own part of a request that was not streamed: without queue, policy and reward.",
            ["mode"],
            SELF_SECONDS,
        )
        self.errors = counter("errors", "Error answers and error events.", ["code"])
        self.first_byte_seconds = histogram(
            "first_byte_seconds", "Until the first event of a stream.", [], SECONDS
        )
        self.best_of = histogram("best_of", "Candidates asked for, per best-of-N request.", [], POWERS)
        self.bypassed = counter(
            "bypassed", "Requests that asked for best-of-N and cannot have it.", ["reason"]
        )
        self.candidates = counter(
            "candidates", "Candidates of best-of-N requests by what became of them.", ["status"]
        )
        self.degraded = counter(
            "degraded", "Best-of-N answers that fell short of what was asked.", ["reason"]
        )
        self.tokens = counter("tokens", "Tokens, as policy and reward server count them.", ["kind"])
        self.reward_seconds = histogram("reward_seconds", "One call to the reward server.", [], SECONDS)
        self.reward_batch = histogram(
            "reward_batch_size", "Texts in one call to the reward server.", [], POWERS
        )
        self.reward_errors = counter("reward_errors", "Calls to the reward server that failed.", [])
        self.reward_gain = histogram(
            "reward_gain", "Reward of the best candidate less the mean of the scored ones.", [], GAINS
        )

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def _makers(self) -> tuple[Callable[..., Counter], Callable[..., Gauge], Callable[..., Histogram]]:
        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(PREFIX + name, text, registry=self.registry)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[Any, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

        return counter, gauge, histogram
