"""The command line of `python -m gateway keys`."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

EPILOG = """\
examples:
  python -m gateway keys create --keys keys.json --name alice
  python -m gateway keys create --keys keys.json --name ci --expires 90d --model chat --max-best-of 8 \\
      --requests-per-minute 60 --max-concurrent-candidates 32 --tokens-per-day 1000000
  python -m gateway keys list --keys keys.json
  python -m gateway keys rotate alice --keys keys.json --grace 3600
  python -m gateway keys revoke ci --keys keys.json

create and rotate print the secret, once; it is stored nowhere. A client sends it as
`Authorization: Bearer SECRET`, which OpenAI's clients do with their api_key. The gateway asks for keys when
it is started with --keys-file keys.json, and takes changes of the file up within a second.
"""
LIMITS = {
    "max_best_of": "largest best_of that it may ask for",
    "default_best_of": "best_of of its requests that ask for none",
    "requests_per_minute": "requests: so many at once, then evenly over the minute",
    "max_concurrent_candidates": "candidates under way: best_of times prompts, over all its requests",
    "tokens_per_day": "prompt tokens and the completion tokens of all candidates, refilled evenly",
}
_SPAN = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    parser = _Parser(
        prog="python -m gateway keys",
        description="API keys of the gateway: hashed in one file, each with its own limits.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_create_flags(commands.add_parser("create", help="make a key and print its secret"))
    listing = commands.add_parser("list", help="show all keys and what they may do")
    listing.add_argument("--json", action="store_true", help="as JSON, for programs")
    rotation = commands.add_parser("rotate", help="give a key a new secret")
    rotation.add_argument("key", metavar="KEY", help="its id or name")
    rotation.add_argument(
        "--grace",
        type=_seconds,
        default=timedelta(0),
        metavar="SECONDS",
        help="how long the old secret stays good (default: 0)",
    )
    revocation = commands.add_parser("revoke", help="take a key out of force, for good")
    revocation.add_argument("key", metavar="KEY", help="its id or name")
    for command in commands.choices.values():
        command.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the keys file")
    return parser


def _add_create_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="for people and logs: letters, digits and . _ @ -")
    parser.add_argument(
        "--expires",
        type=_expiry,
        metavar="WHEN",
        help="2027-01-31 (as it begins in UTC), a full ISO 8601 time, or e.g. 90d, 12h, 30m (default: never)",
    )
    parser.add_argument(
        "--model",
        action="append",
        dest="models",
        default=[],
        metavar="NAME",
        help="a model that it may use; may be given again (default: all)",
    )
    for name, text in LIMITS.items():
        parser.add_argument(flag(name), type=int, metavar="N", help=text)


def flag(field: str) -> str:
    """The flag that sets a key's field."""
    return "--model" if field == "models" else f"--{field.replace('_', '-')}"


def _expiry(text: str) -> datetime | timedelta:
    """A moment, or a span from now."""
    span = _SPAN.fullmatch(text)
    if span:
        return timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "must be a date like 2027-01-31, an ISO 8601 time, or e.g. 90d"
        ) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _seconds(text: str) -> timedelta:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError("must be a whole number of seconds")
    return timedelta(seconds=int(text))
