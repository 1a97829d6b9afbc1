"""Every metric, once. Names start with `bonsai_rm_`; labels are bounded: routes, statuses, models.

Each application has its own registry, so that several can live in one process.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "bonsai_rm_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SPREADS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4)
# Normalised rewards have mean 0 and standard deviation 1 on the reference policy.
REWARDS = (-5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 5)


class Metrics:
    """The server's instruments, one attribute each."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.request_seconds = self._histogram("request_seconds", "Whole requests.", SECONDS, "route")
        self.in_flight = self._gauge("in_flight_requests", "Requests being served.")
        self.disconnects = self._counter("disconnects", "Clients that went away before their answer.")
        self.rejected = self._counter("rejected", "Requests refused with 429 for want of room.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens waiting for a batch.")
        self.queue_seconds = self._histogram(
            "queue_seconds", "A request's wait for its first batch.", SECONDS
        )
        self.tokenize_seconds = self._histogram("tokenize_seconds", "Text to token ids, a request.", SECONDS)
        self.infer_seconds = self._histogram(
            "infer_seconds", "First batch to last logit, a request.", SECONDS
        )
        self.batch_rows = self._histogram("batch_rows", "Conversations in one forward pass.", ROWS)
        self.batch_seconds = self._histogram("batch_seconds", "One forward pass.", SECONDS)
        self.tokens = self._counter("tokens", "Tokens of the conversations that models judged.")
        self.computed_tokens = self._counter(
            "computed_tokens", "Tokens computed for them: shared beginnings once, padding too."
        )
        self.prompt_cache = self._counter(
            "prompt_cache", "Conversations whose prompt had been computed before, or not.", "outcome"
        )
        self.scores = self._histogram("score", "Normalised rewards given by /score.", REWARDS, "model")
        self.spread = self._histogram(
            "spread", "Standard deviation of an ensemble's members on one response.", SPREADS, "model"
        )
        self.not_finite = self._counter(
            "not_finite", "Rewards that were not finite, answered as null.", "model"
        )
        self.score_decile = self._counter(
            "score_decile", "Scores by decile of their calibration.", "model", "decile"
        )
        self.score_mean_shift = self._gauge(
            "score_mean_shift",
            "Mean of the last 1000 scores less the calibrated mean, in deviations.",
            "model",
        )
        self.out_of_distribution = self._counter(
            "out_of_distribution", "Responses out of the calibrated range.", "model"
        )
        self.reloads = self._counter(
            "reloads", "Checkpoints looked at on SIGHUP: swapped, unchanged, refused.", "model", "outcome"
        )
        self.models = self._gauge("model_info", "1 for each model that is served.", "model", "version")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)
