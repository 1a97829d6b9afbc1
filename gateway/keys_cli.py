"""`python -m gateway keys`: create, list, rotate and revoke API keys. See docs/keys.md.

A running gateway takes the change up within a second. A secret is printed once, alone on standard output, and
is stored nowhere. Errors are one line and exit code 2.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway import keys_file
from gateway.keys import Key, KeysError, Retired, digest, find_by_name, new_id, new_secret
from gateway.keys_flags import LIMITS, build_parser, flag

HIDDEN = {"sha256", "retired", "revoked"}
"""What a list does not show of a key: nobody needs hashes, and `state` says the rest."""
WIDE = 250


def main(argv: Sequence[str], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int:
    """Run one command; the exit code."""
    options = build_parser().parse_args(argv)
    try:
        COMMANDS[options.command](options, now().replace(microsecond=0))
    except KeysError as error:
        print(f"python -m gateway keys: {error}", file=sys.stderr)
        return 2
    return 0


def create(options: argparse.Namespace, now: datetime) -> None:
    """Make a key and print its secret."""
    secret = new_secret()
    key = _new_key(options, secret, now)

    def add(keys: keys_file.Keys) -> keys_file.Keys:
        if any(old.name == key.name and old.revoked is None for old in keys):
            raise KeysError(f"there is a key {key.name!r} already; rotate or revoke it, or take another name")
        return (*keys, key)

    keys_file.update(options.keys, add, create=True)
    _hand_over(options.keys, secret, f"created {key.id} ({key.name})")


def show(options: argparse.Namespace, now: datetime) -> None:
    """Every key, without its hashes."""
    keys = keys_file.read(options.keys)
    _warn(options.keys)
    rows = [_row(key, now) for key in keys]
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return
    table = Table(*(name.replace("_", " ") for name in _columns()), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def rotate(options: argparse.Namespace, now: datetime) -> None:
    """A new secret at once; the old one stays good for the grace time."""
    secret = new_secret()

    def replace(key: Key) -> Key:
        if key.state(now) != "active":
            raise KeysError(f"{key.id} ({key.name}) is {key.state(now)}; create a new key instead")
        kept = tuple(old for old in key.retired if old.until > now)
        if options.grace:
            kept = (*kept, Retired(sha256=key.sha256, until=_after(now, options.grace, "--grace")))
        return msgspec.structs.replace(key, sha256=digest(secret.encode()), retired=kept)

    key = _change(options, replace)
    grace = int(options.grace.total_seconds())
    fate = f"the old secret is good for {grace} s more" if grace else "the old secret is good no more"
    _hand_over(options.keys, secret, f"rotated {key.id} ({key.name}); {fate}")


def revoke(options: argparse.Namespace, now: datetime) -> None:
    """Out of force, with every secret that it had; doing it again changes nothing."""
    key = _change(options, lambda key: msgspec.structs.replace(key, revoked=key.revoked or now, retired=()))
    print(f"revoked {key.id} ({key.name})", file=sys.stderr)


COMMANDS: dict[str, Callable[[argparse.Namespace, datetime], None]] = {
    "create": create,
    "list": show,
    "rotate": rotate,
    "revoke": revoke,
}


def _new_key(options: argparse.Namespace, secret: str, now: datetime) -> Key:
    expires = options.expires
    if isinstance(expires, timedelta):
        expires = _after(now, expires, "--expires")
    if expires is not None and expires <= now:
        raise KeysError("--expires: is not in the future")
    fields = {name: getattr(options, name) for name in ("name", "models", *LIMITS)}
    fields |= {"id": new_id(), "sha256": digest(secret.encode()), "created": now, "expires": expires}
    try:
        return msgspec.convert(fields, Key)
    except msgspec.ValidationError as error:
        raise KeysError(_as_flags(str(error))) from None


def _change(options: argparse.Namespace, change: Callable[[Key], Key]) -> Key:
    """Change the key that the command names; the key as it is then."""
    changed: list[Key] = []

    def apply(keys: keys_file.Keys) -> keys_file.Keys:
        wanted = find_by_name(keys, options.key)
        changed.append(change(wanted))
        return tuple(changed[0] if key is wanted else key for key in keys)

    keys_file.update(options.keys, apply)
    return changed[0]


def _hand_over(path: Path, secret: str, text: str) -> None:
    print(f"{text}. Its secret, shown this once:", file=sys.stderr, flush=True)
    print(secret, flush=True)
    _warn(path)


def _warn(path: Path) -> None:
    if keys_file.open_to_others(path):
        print(f"warning: {path} is open to other users; chmod 600 closes it", file=sys.stderr)


def _columns() -> list[str]:
    return [*(name for name in Key.__struct_fields__ if name not in HIDDEN), "state"]


def _row(key: Key, now: datetime) -> dict[str, object]:
    return {name: key.state(now) if name == "state" else getattr(key, name) for name in _columns()}


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    if isinstance(value, tuple):
        return ", ".join(value) or "all"
    return "-" if value is None else str(value)


def _after(now: datetime, span: timedelta, name: str) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise KeysError(f"{name}: is too far off") from None


def _as_flags(problem: str) -> str:
    """msgspec's message with flags in place of fields and paths."""
    text, _, path = problem.partition(" - at `$.")
    field = re.match(r"[a-z_]*", path)
    if field and field[0] == "name":
        return "--name: take letters, digits and . _ @ -, at most 64, and do not begin with key-"
    text = re.sub(r"`([a-z]+_[a-z_]+)`", lambda found: flag(found[1]), text)
    return f"{flag(field[0])}: {text}" if field and field[0] else text
