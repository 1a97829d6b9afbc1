"""Every metric, once. Names start with `bonsai_gateway_`; labels are bounded: no key, user, prompt or request
id.

Each application has its own registry, so that several can live in one process. The workers of one gateway are
as one: each keeps its values in files of a folder that they share (`share`), and whichever is asked answers
for all. The files carry the worker's number, not its process id: who replaces a dead worker counts on from
where that one stopped, and there are never more files than workers.
"""

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

PREFIX = "bonsai_gateway_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
SELF_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
REWARDS = (-5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 5)
"""Normalised rewards have mean 0 and standard deviation 1 on the reference policy."""
MARGINS = (0, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
KL_NATS = (0, 0.194, 0.637, 1.205, 1.836, 2.498, 3.175, 3.86)
"""Just above what 1, 2, 4 ... 128 scored candidates cost."""
SPREADS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4)
GAINS = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
Mode = Literal["livesum", "livemax"]
"""How the workers' values of a gauge become one."""
RESULTS = ("done", "refused")
STATUSES = ("scored", "unscored", "too_long", "unfinished")
SHORTFALLS = (
    "greedy",
    "deadline",
    "candidates_failed",
    "candidates_too_long",
    "rewards_invalid",
    "reward_unavailable",
)
REFUSALS = ("queue_full", "queue_timeout", "retry_shed")
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable; where it is set before the start, values are shared as that library does."""


def share(folder: Path, worker: int) -> None:
    """From now on this process's instruments share their values with the other workers'."""
    os.environ[FOLDER] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: worker)


def forget(folder: Path, worker: int) -> None:
    """A worker has died: what it was in the middle of is over. Before another takes its number."""
    mark_process_dead(worker, str(folder))


class Metrics:
    """The gateway's instruments, one attribute each."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get(FOLDER)
        counter, gauge, histogram = self._makers()
        self.requests = counter("requests", "Requests answered.", ["route", "model", "code"])
        self._requests: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self.request_seconds = histogram(
            "request_seconds",
            "From the request's arrival to the last byte of its answer.",
            ["route"],
            SECONDS,
        )
        self.lag_seconds = histogram(
            "event_loop_lag_seconds", "How late the event loop gets to what is due, sampled.", [], LAGS
        )
        build = gauge("build_info", "Always 1; the version is its label.", ["version"], mode="livemax")
        build.labels(version("bonsai-gateway")).set(1)
        self.reloads = counter(
            "reloads", "Configurations read again, by whether they are in force.", ["result"]
        )
        self.log_lines_dropped = counter(
            "log_lines_dropped", "Log lines that could not be written quickly enough, or at all.", []
        )
        self.in_flight = gauge("in_flight_requests", "Requests being served.")
        self.slots = gauge("candidate_slots_in_use", "Samples being generated, of those admitted.")
        self.slot_limit = gauge("candidate_slots", "Candidate slots that there are.", mode="livemax")
        self.waiting = gauge("queued_requests", "Requests waiting for candidate slots.")
        self.queue_seconds = histogram("queue_seconds", "Wait for candidate slots.", [], SECONDS)
        self.rejected = counter("rejected", "Requests refused at admission.", ["reason"])
        self.key_file_reloads = counter(
            "key_file_reloads", "Keys files read again, by whether they are in force.", ["result"]
        )
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
            "first_byte_seconds", "Until the first event of a stream.", ["mode"], SECONDS
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
        self.reward = histogram(
            "reward",
            "Normalised reward, per prompt: of the best candidate, the mean of the scored, the worst.",
            ["of"],
            REWARDS,
        )
        self.win_margin = histogram(
            "win_margin", "Reward of the best candidate less the second best's.", [], MARGINS
        )
        self.kl_bound = histogram(
            "kl_bound_nats", "Bound on what an answer's choice cost in KL to the policy.", [], KL_NATS
        )
        self.reward_spread = histogram(
            "reward_spread", "Standard deviation of an ensemble's members on one text.", ["of"], SPREADS
        )
        self.judged = counter(
            "judged",
            "Scored and chosen candidates by whether they were in distribution.",
            ["of", "distribution"],
        )

        self.upstream_requests = counter(
            "upstream_requests",
            "Calls to a replica of a policy or reward server by how they ended.",
            ["kind", "replica", "outcome"],
        )
        self.replica_outstanding = gauge(
            "replica_outstanding", "Candidates or texts that a replica works on.", ["kind", "replica"]
        )
        self.replica_ejected = gauge(
            "replica_ejected",
            "Worker processes that give the replica no work because it failed.",
            ["kind", "replica"],
        )
        self.retries = counter(
            "retries", "Calls that were made again on another replica, by what had gone wrong.", ["reason"]
        )

        # There before anything has happened: an alert sees no step to 1 from nowhere.
        for each, known in (
            (self.reloads, RESULTS),
            (self.key_file_reloads, RESULTS),
            (self.candidates, STATUSES),
            (self.degraded, SHORTFALLS),
            (self.rejected, REFUSALS),
        ):
            for value in known:
                each.labels(value)

    def request(
        self, route: str, model: str, code: str, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """A request has ended. Looking labels up costs more than counting, so what was found is kept: it
        is as bounded as the labels are."""
        children = self._requests.get((route, model, code))
        if children is None:
            children = (self.requests.labels(route, model, code), self.request_seconds.labels(route))
            self._requests[route, model, code] = children
        count, duration = children
        count.inc()
        duration.observe(seconds, exemplar)

    def render(self, encode: Callable[[CollectorRegistry], bytes] = generate_latest) -> bytes:
        """The exposition text. With workers it reads files: some milliseconds, not for the event loop."""
        if self._folder is None:
            return encode(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, path=self._folder)
        return encode(everyone)

    def _makers(self) -> tuple[Callable[..., Counter], Callable[..., Gauge], Callable[..., Histogram]]:
        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: Sequence[str] = (), mode: Mode = "livesum") -> Gauge:
            return Gauge(PREFIX + name, text, labels, registry=self.registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[Any, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

        return counter, gauge, histogram
