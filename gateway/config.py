"""What an operator can set: frozen, typed, checked when made, whether it comes from flags or from a file.

Policies and reward models are named things with one or more replicas each. Everything here is read by the
gateway; `gateway.flags` and `gateway.config_file` make it, docs/configuration.md explains it.
"""

import os
import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import field

from gateway.fields import ENGINE_FIELDS
from gateway.protocol import OnRewardFailure

RewardKind = Literal["score", "pooling", "get_reward"]
ControlTextMode = Literal["neutralise", "refuse", "allow"]

_BEST_OF_SUFFIX = re.compile(r":best-of-[0-9]+$")


class ConfigError(ValueError):
    """A setting that cannot work; the message says which and what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every group of settings: an unknown key is an error."""


class PolicyConfig(Settings, frozen=True, kw_only=True):
    """One policy: vLLM servers that all serve the same model."""

    urls: tuple[str, ...]
    """Its replicas."""
    name: str | None = None
    """What clients call it. None: by the names that the servers list in /v1/models."""
    aliases: tuple[str, ...] = ()
    """What clients may call it besides."""
    model: str | None = None
    """The served model's name upstream; None: `name`."""
    timeout_s: float = 600.0
    """The longest silence on a connection to the policy, and the longest best-of-N generation."""
    first_byte_timeout_s: float = 60.0
    """The longest wait for the first byte of a stream; then another replica is asked."""
    max_candidates_per_call: int = 64
    """More candidates than these are sampled by several requests upstream, spread over the replicas."""
    api_key_env: str | None = None
    """The environment variable with the key that the servers want (vLLM's --api-key)."""
    control_text: ControlTextMode = "neutralise"
    """What happens to control tokens that a client writes into messages as text."""

    def __post_init__(self) -> None:
        _check_urls(self.urls)
        check(self.timeout_s > 0, "`timeout_s` must be above 0 seconds")
        check(self.first_byte_timeout_s > 0, "`first_byte_timeout_s` must be above 0 seconds")
        check(self.max_candidates_per_call >= 1, "`max_candidates_per_call` must be at least 1")
        check(self.name is not None or not self.aliases, "`aliases` need a `name`")
        check(self.name is not None or self.model is None, "`model` needs a `name` that clients can say")
        for name in self.names:
            _check_name(name)
        _check_secret(self.api_key_env)

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call it, its name first; empty where the servers' own names count."""
        return () if self.name is None else (self.name, *self.aliases)

    @property
    def api_key(self) -> str | None:
        """From the environment."""
        return None if self.api_key_env is None else os.environ.get(self.api_key_env)


class RewardConfig(Settings, frozen=True, kw_only=True):
    """One reward model: servers that all judge alike.

    kind "score": this project's rm_server (`POST /score`, normalised rewards).
    kind "pooling": a reward model on vLLM (`POST /pooling`, raw logits, from which `offset` is subtracted).
    kind "get_reward": an OpenRLHF server (`POST /get_reward`, texts rendered by `template`, less `offset`).
    """

    urls: tuple[str, ...]
    """Its replicas."""
    name: str | None = None
    """What clients call it in `alignment.reward_model`. None: any name, which the server then checks."""
    model: str | None = None
    """Its name upstream; None: `name`, and without that the server's default."""
    kind: RewardKind = "score"
    offset: float = 0.0
    """Subtracted from raw rewards: `reward_offset` of the checkpoint's alignment.json."""
    template: str | None = None
    """kind get_reward: the Jinja template that renders `messages`, or the path of a file with it (@FILE)."""
    timeout_s: float = 30.0
    """The longest call."""
    api_key_env: str | None = None
    """The environment variable with the key that the servers want."""

    def __post_init__(self) -> None:
        _check_urls(self.urls)
        check(self.timeout_s > 0, "`timeout_s` must be above 0 seconds")
        check(
            self.kind != "score" or self.offset == 0.0,
            "`offset` belongs to the kinds pooling and get_reward: /score rewards are normalised already",
        )
        check(
            self.kind != "pooling" or self.upstream_model is not None,
            "kind pooling needs `model` or `name`, the name under which vLLM serves the reward model",
        )
        check(
            (self.kind == "get_reward") == (self.template is not None),
            "`template` belongs to kind get_reward, which needs it: the server takes rendered text",
        )
        _check_secret(self.api_key_env)

    @property
    def upstream_model(self) -> str | None:
        """What the server is asked for."""
        return self.model if self.model is not None else self.name

    @property
    def api_key(self) -> str | None:
        """From the environment."""
        return None if self.api_key_env is None else os.environ.get(self.api_key_env)


class Limits(Settings, frozen=True, kw_only=True):
    """What one gateway takes on, over all its workers. A candidate slot is one sample being generated."""

    max_best_of: int = 64
    max_candidates_per_request: int = 128
    """Cap on samples per request: best_of (or n) times the number of prompts."""
    max_concurrent_candidates: int = 512
    max_queue: int = 256
    """Requests that may wait for slots; the next one is answered 503 at once."""
    max_queue_wait_s: float = 2.0
    max_body_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        check(self.max_best_of >= 1, "`max_best_of` must be at least 1")
        check(
            self.max_candidates_per_request >= self.max_best_of,
            "`max_candidates_per_request` must be at least `max_best_of`",
        )
        check(
            self.max_concurrent_candidates >= self.max_candidates_per_request,
            "`max_concurrent_candidates` must be at least `max_candidates_per_request`,"
            " or the largest requests could never start",
        )
        check(self.max_queue >= 0, "`max_queue` must be 0 or more")
        check(self.max_queue_wait_s >= 0, "`max_queue_wait_s` must be 0 seconds or more")
        check(self.max_body_bytes >= 1024, "`max_body_bytes` must be at least 1024")


class GatewayConfig(Settings, frozen=True, kw_only=True):
    """One gateway: its policies, its reward models, and how requests are treated."""

    policies: tuple[PolicyConfig, ...]
    """The first is the default."""
    rewards: tuple[RewardConfig, ...] = ()
    """The first is the default; without any, best_of above 1 is refused."""
    limits: Limits = field(default_factory=Limits)
    default_best_of: int = 1
    on_reward_failure: OnRewardFailure = "error"
    heartbeat_s: float = 10.0
    """Until the first byte of a best-of-N stream, and between its heartbeats."""
    allow_fields: frozenset[str] = frozenset()
    """Engine-reaching request fields (see `gateway.fields.ENGINE_FIELDS`) that clients may send."""
    keys_file: str | None = None
    """API keys, as `python -m gateway keys` writes them; without it the gateway is open to all."""
    public_metrics: bool = False
    """With keys: whether /metrics and /version are open without one."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the gateway from a browser."""
    otlp_traces_endpoint: str | None = None
    """Where traces go, by OTLP over HTTP; None: there are none."""

    def __post_init__(self) -> None:
        check(bool(self.policies), "`policies` must list at least one")
        check(
            1 <= self.default_best_of <= self.limits.max_best_of,
            "`default_best_of` must lie between 1 and `max_best_of`",
        )
        check(
            self.default_best_of == 1 or bool(self.rewards),
            "`default_best_of` above 1 needs a reward model: without one nothing can choose",
        )
        check(self.heartbeat_s > 0, "`heartbeat_s` must be above 0 seconds")
        unknown = sorted(self.allow_fields - ENGINE_FIELDS)
        check(not unknown, f"`allow_fields` has no field {', '.join(unknown)}")
        _check_distinct("policies", [name for policy in self.policies for name in policy.names])
        _check_distinct("rewards", [reward.name for reward in self.rewards if reward.name is not None])
        check(
            "*" not in self.cors_origins or len(self.cors_origins) == 1,
            "`cors_origins` is either ['*'] or a list of origins",
        )
        for origin in self.cors_origins:
            check(
                _is_origin(origin), "`cors_origins` are like https://app.example:8443, as browsers send them"
            )
        if self.otlp_traces_endpoint is not None:
            _check_address(
                "otlp_traces_endpoint",
                self.otlp_traces_endpoint,
                example="http://127.0.0.1:4318/v1/traces",
                secret="OTEL_EXPORTER_OTLP_HEADERS in the environment",
            )


def check(holds: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def _is_origin(text: str) -> bool:
    """Whether a browser could send this in its Origin header: lower case, and nothing behind the port."""
    parts = urlsplit(text)
    return text in {"*", "null"} or (
        bool(parts.netloc) and text == f"{parts.scheme}://{parts.netloc}".lower()
    )


def _check_urls(urls: tuple[str, ...]) -> None:
    check(bool(urls), "`urls` must list at least one address")
    check(len(set(urls)) == len(urls), "`urls` lists an address twice")
    for url in urls:
        _check_address("urls", url, example="http://127.0.0.1:8100", secret="`api_key_env`")


def _check_address(key: str, url: str, *, example: str, secret: str) -> None:
    parts = urlsplit(url)
    check(
        parts.scheme in {"http", "https"} and bool(parts.hostname),
        f"`{key}` must be http:// or https:// addresses such as {example}",
    )
    check(
        parts.username is None and parts.password is None and not parts.query and not parts.fragment,
        f"`{key}` must be plain addresses: a key belongs into {secret}",
    )


def _check_name(name: str) -> None:
    check(
        0 < len(name) <= 256 and name.isprintable() and not _BEST_OF_SUFFIX.search(name),
        "`name` and `aliases` must be printable, of at most 256 characters, and not end in :best-of-NUMBER",
    )


def _check_secret(variable: str | None) -> None:
    check(
        variable is None or bool(os.environ.get(variable)),
        f"`api_key_env`: the environment variable {variable} is not set",
    )


def _check_distinct(key: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    check(not twice, f"`{key}` has the name {', '.join(twice)} more than once")
