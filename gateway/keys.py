"""API keys: who may use the gateway, and how much of it.

A key is known by the SHA-256 of its secret alone. The secret is 256 random bits, so that nobody can guess one
to try it against a hash that leaked: salt and a slow hash, which passwords need because people choose them,
would cost each request time and protect nothing. For the same reason a lookup by hash leaks no secret: how
long it takes depends on the hash of what was sent, which nobody can steer towards that of a key.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated

import msgspec

from gateway.allowance import Allowance, AtLeastOne
from gateway.config import ConfigError

SECRET_PREFIX = "sk-bonsai-"
"""By it secret scanners know a key."""
SECRET_BYTES = 32
MAX_CLEAN = 200
MAX_SECRET_BYTES = 256
"""Longer ones are no keys of ours and are not worth hashing."""

Id = Annotated[str, msgspec.Meta(pattern=r"^key-[0-9a-f]{12}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^(?!key-)[A-Za-z0-9._@-]{1,64}\Z")]
"""Plain, because it stands in logs; never like an id, because commands take either."""
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Model = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class KeysError(ConfigError):
    """A keys file, or what was asked of it, cannot work; the message says what and where."""


class Retired(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret that was replaced and still opens the door for a while."""

    sha256: Digest
    until: Moment


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One API key and what its holder may do; an empty list or null is without limit."""

    id: Id
    name: Name
    sha256: Digest
    created: Moment
    expires: Moment | None = None
    revoked: Moment | None = None
    models: tuple[Model, ...] = ()
    """Names that it may use, as clients say them and without `:best-of-N`."""
    max_best_of: AtLeastOne | None = None
    default_best_of: AtLeastOne | None = None
    requests_per_minute: AtLeastOne | None = None
    max_concurrent_candidates: AtLeastOne | None = None
    tokens_per_day: AtLeastOne | None = None
    retired: tuple[Retired, ...] = ()

    def __post_init__(self) -> None:
        default, most = self.default_best_of, self.max_best_of
        if default is not None and most is not None and default > most:
            raise ValueError("`default_best_of` is above `max_best_of`")

    def __repr__(self) -> str:
        return f"Key({self.id}, {self.name})"  # not even a hash gets into a log by way of a traceback

    @property
    def allowance(self) -> Allowance | None:
        """What admission holds it to; None where it has no such limit."""
        allowance = Allowance(
            requests_per_minute=self.requests_per_minute,
            max_concurrent_candidates=self.max_concurrent_candidates,
            tokens_per_day=self.tokens_per_day,
        )
        return None if allowance == _UNLIMITED else allowance

    def state(self, now: datetime) -> str:
        """ "active", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


_UNLIMITED = Allowance()


class KeyRing:
    """The keys that open the door, by what they open it with."""

    def __init__(self, keys: Iterable[Key] = (), clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_digest: dict[str, tuple[Key, float]] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Go by these from now on."""
        found: dict[str, tuple[Key, float]] = {}
        for key in keys:
            if key.revoked is None:
                until = float("inf") if key.expires is None else key.expires.timestamp()
                for old in key.retired:
                    found[old.sha256] = (key, min(until, old.until.timestamp()))
                found[key.sha256] = (key, until)
        self._by_digest = found

    def find(self, secret: bytes) -> Key | None:
        """Whose secret this is; None where it is nobody's, or of a key that was revoked or has expired."""
        if len(secret) > MAX_SECRET_BYTES:
            return None
        key, until = self._by_digest.get(digest(secret), (None, 0.0))
        return key if self._clock() < until else None


def digest(secret: bytes) -> str:
    """What a secret is known by."""
    return hashlib.sha256(secret).hexdigest()


def new_secret() -> str:
    """For a client to keep; we keep its digest."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def new_id() -> str:
    """For logs and commands."""
    return f"key-{secrets.token_hex(6)}"


def check_distinct(keys: Iterable[Key]) -> None:
    """Ids and secrets are unique, and names among keys that were not revoked.

    Raises:
        KeysError: the message says which two collide.
    """
    seen: dict[tuple[str, str], Key] = {}
    for key in keys:
        marks = [("id", key.id), ("sha256", key.sha256)]
        marks += [("sha256", old.sha256) for old in key.retired]
        marks += [("name", key.name)] if key.revoked is None else []
        for mark in marks:
            if mark in seen:
                other = seen[mark]
                raise KeysError(f"{other.id} ({other.name}) and {key.id} ({key.name}) share a `{mark[0]}`")
            seen[mark] = key


def find_by_name(keys: Iterable[Key], wanted: str) -> Key:
    """The key with that id, or else the one in force with that name.

    Raises:
        KeysError: there is none.
    """
    named = [key for key in keys if wanted in (key.id, key.name)]
    if not named:
        raise KeysError(f"there is no key {clean(wanted)!r}; `keys list` shows all")
    return next((key for key in named if key.revoked is None), named[-1])


def clean(text: str) -> str:
    """Somebody's text, fit for one line of a terminal."""
    return re.sub(r"[^ -~]", "?", text)[:MAX_CLEAN]
