"""What an operator can set: frozen, typed, checked when made.

Policies and reward models are named things, so that a configuration with several of each is more of the same.
Everything here is read by the gateway; its flags are in `gateway.flags`, its documentation in docs/api.md.
"""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

OnRewardFailure = Literal["error", "first"]
RewardKind = Literal["score", "pooling"]


class ConfigError(ValueError):
    """A setting that cannot work; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A vLLM server that samples."""

    url: str
    name: str | None = None
    """The served model's name; None asks the server's /v1/models."""
    timeout_s: float = 600.0
    """The longest silence on a connection to the policy, and the longest generation."""

    def __post_init__(self) -> None:
        _check_url("--policy-url", self.url)
        _check(self.timeout_s > 0, "--policy-timeout must be above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A server that judges.

    kind "score": this project's rm_server (`POST /score`, normalised rewards).
    kind "pooling": a reward model on vLLM (`POST /pooling`, raw logits, from which `offset` is subtracted).
    """

    url: str
    name: str | None = None
    """The reward model's name; None lets the server's default judge."""
    kind: RewardKind = "score"
    offset: float = 0.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _check_url("--reward-url", self.url)
        _check(self.timeout_s > 0, "--reward-timeout must be above 0 seconds")
        _check(
            self.kind == "pooling" or self.offset == 0.0,
            "--reward-offset belongs to --reward-kind pooling: /score rewards are normalised already",
        )
        _check(
            self.kind == "score" or self.name is not None,
            "--reward-kind pooling needs --reward-name, the name under which vLLM serves the reward model",
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one gateway takes on. A candidate slot is one sample being generated."""

    max_best_of: int = 64
    max_candidates_per_request: int = 128
    """Cap on samples per request: best_of (or n) times the number of prompts."""
    max_concurrent_candidates: int = 512
    max_queue: int = 256
    """Requests that may wait for slots; the next one is answered 503 at once."""
    max_queue_wait_s: float = 2.0
    max_body_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        _check(self.max_best_of >= 1, "--max-best-of must be at least 1")
        _check(
            self.max_candidates_per_request >= self.max_best_of,
            "--max-candidates-per-request must be at least --max-best-of",
        )
        _check(
            self.max_concurrent_candidates >= self.max_candidates_per_request,
            "--max-concurrent-candidates must be at least --max-candidates-per-request,"
            " or the largest requests could never start",
        )
        _check(self.max_queue >= 0, "--max-queue must be 0 or more")
        _check(self.max_queue_wait_s >= 0, "--max-queue-wait must be 0 seconds or more")
        _check(self.max_body_bytes >= 1024, "--max-body-bytes must be at least 1024")


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """One gateway: a policy, at most one reward server, and how requests are treated."""

    policy: PolicyConfig
    reward: RewardConfig | None = None
    limits: Limits = field(default_factory=Limits)
    default_best_of: int = 1
    on_reward_failure: OnRewardFailure = "error"
    heartbeat_s: float = 10.0
    """Until the first byte of a best-of-N stream, and between its heartbeats."""
    allow_fields: frozenset[str] = frozenset()
    """Engine-reaching request fields (see `gateway.fields.ENGINE_FIELDS`) that clients may send."""

    def __post_init__(self) -> None:
        _check(
            1 <= self.default_best_of <= self.limits.max_best_of,
            "--default-best-of must lie between 1 and --max-best-of",
        )
        _check(
            self.default_best_of == 1 or self.reward is not None,
            "--default-best-of above 1 needs --reward-url: without a reward model nothing can choose",
        )
        _check(self.heartbeat_s > 0, "--heartbeat must be above 0 seconds")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_url(flag: str, url: str) -> None:
    parts = urlsplit(url)
    _check(
        parts.scheme in {"http", "https"} and bool(parts.hostname),
        f"{flag} must be an http:// or https:// address such as http://127.0.0.1:8100",
    )
