"""What one API key may use, and what it has used: pure arithmetic on a clock that is passed in.

Rates are kept by GCRA, the generic cell rate algorithm (ITU-T I.371), which is a token bucket whose whole
state is one number: the moment at which the bucket will be full again. So `requests_per_minute` 60 means that
60 requests may come at once and then one per second; `tokens_per_day` likewise, refilled without a pause. An
idle key's state equals a new one's and can be forgotten, and a changed allowance takes effect at once, with
the same share of it used.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec

MINUTE_S = 60.0
DAY_S = 86_400.0
SLACK_S = 1e-6
"""Clocks are floats: who comes back after exactly Retry-After seconds must not be a rounding error early."""

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Allowance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one key may use; None is without limit."""

    requests_per_minute: AtLeastOne | None = None
    max_concurrent_candidates: AtLeastOne | None = None
    """Candidate slots of its requests under way, those that wait for their turn included."""
    tokens_per_day: AtLeastOne | None = None
    """Prompt tokens and the completion tokens of all candidates."""


class Rate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a key stands; None where it has no such limit. `reset` is seconds until the limit is whole."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers, with durations as OpenAI writes them."""
        found: dict[str, str] = {}
        for name, header in zip(self.__struct_fields__, RATE_HEADERS, strict=True):
            value = getattr(self, name)
            if value is not None:
                found[header] = duration(value) if name.startswith("reset") else str(value)
        return found


RATE_HEADERS = tuple(f"x-ratelimit-{name.replace('_', '-')}" for name in Rate.__struct_fields__)


def duration(seconds: float) -> str:
    """Rounded up to milliseconds, e.g. 0 -> "0s", 0.0205 -> "21ms", 1.5 -> "1.5s", 3661 -> "1h1m1s"."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{text}{rest / 1000:g}s"


@dataclass
class Bucket:
    """GCRA over a period: the allowance of one period may be used at once, and comes back evenly over it."""

    period_s: float
    full_at: float = float("-inf")

    def level(self, limit: int, now: float) -> float:
        """What is left; below zero when more was used than there was."""
        return limit * (1.0 - self.reset_s(now) / self.period_s)

    def reset_s(self, now: float) -> float:
        """Seconds until it is full."""
        return max(self.full_at - now, 0.0)

    def wait_s(self, limit: int, now: float) -> float:
        """Seconds until there is one to take; 0 when there is."""
        wait = self.reset_s(now) - self.period_s * (1.0 - 1.0 / limit)
        return wait if wait > SLACK_S else 0.0

    def take(self, amount: int, limit: int, now: float) -> None:
        """Use `amount`, which may be more than there is."""
        self.full_at = max(self.full_at, now) + amount * self.period_s / limit

    def give_back(self, amount: int, limit: int) -> None:
        """Undo a `take`."""
        self.full_at -= amount * self.period_s / limit


class Account:
    """What one key uses."""

    def __init__(self) -> None:
        self.slots = 0
        self._requests = Bucket(MINUTE_S)
        self._tokens = Bucket(DAY_S)

    def request_wait_s(self, allowance: Allowance, now: float) -> float:
        """Seconds until the rate lets one more request in."""
        limit = allowance.requests_per_minute
        return 0.0 if limit is None else self._requests.wait_s(limit, now)

    def token_wait_s(self, allowance: Allowance, now: float) -> float:
        """Seconds until there is at least one token."""
        limit = allowance.tokens_per_day
        return 0.0 if limit is None else self._tokens.wait_s(limit, now)

    def has_room(self, allowance: Allowance, slots: int) -> bool:
        """Whether `slots` more keep within its concurrency."""
        most = allowance.max_concurrent_candidates
        return most is None or self.slots + slots <= most

    def enter(self, allowance: Allowance, slots: int, now: float) -> None:
        """A request comes in."""
        self.slots += slots
        if allowance.requests_per_minute is not None:
            self._requests.take(1, allowance.requests_per_minute, now)

    def turn_away(self, allowance: Allowance) -> None:
        """A request that came in was not served after all: it does not count against the rate."""
        if allowance.requests_per_minute is not None:
            self._requests.give_back(1, allowance.requests_per_minute)

    def leave(self, allowance: Allowance, slots: int, tokens: int, now: float) -> None:
        """A request ends, having used `tokens`."""
        self.slots -= slots
        if allowance.tokens_per_day is not None and tokens:
            self._tokens.take(tokens, allowance.tokens_per_day, now)

    def is_new(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        return self.slots == 0 and max(self._requests.full_at, self._tokens.full_at) <= now

    def rate(self, allowance: Allowance, now: float) -> Rate:
        """Where the key stands."""
        requests, tokens = allowance.requests_per_minute, allowance.tokens_per_day
        return Rate(
            limit_requests=requests,
            remaining_requests=None if requests is None else _whole(self._requests.level(requests, now)),
            reset_requests=None if requests is None else self._requests.reset_s(now),
            limit_tokens=tokens,
            remaining_tokens=None if tokens is None else _whole(self._tokens.level(tokens, now)),
            reset_tokens=None if tokens is None else self._tokens.reset_s(now),
        )


def _whole(level: float) -> int:
    return max(math.floor(level + SLACK_S), 0)
