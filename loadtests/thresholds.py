"""A file of limits that a run has to keep, so that it can fail a build:

[at_most]
error_share = 0.01
latency_p99_ms = 800
lag_p99_ms = 5
[at_least]
reward_mean = 0.2
"""

import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import LoadTestError

SIDES = ("at_most", "at_least")


@dataclass(frozen=True)
class Threshold:
    """A limit of one measure."""

    key: str
    side: str
    limit: float

    @property
    def target(self) -> str:
        """As tables show it."""
        return f"{'<=' if self.side == 'at_most' else '>='} {self.limit:g}"

    def met(self, value: float) -> bool:
        """What was not measured (nan) is not met."""
        return value <= self.limit if self.side == "at_most" else value >= self.limit


def read(path: Path, known: Collection[str]) -> list[Threshold]:
    """The thresholds of a file; `known` are the measures that there are. LoadTestError when it is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{path}: cannot be read ({error})") from error
    for name, table in tables.items():
        if name not in SIDES or not isinstance(table, dict):
            raise LoadTestError(f"{path}: {name}: only the tables [at_most] and [at_least] have a meaning")
    found = [_one(path, side, key, limit, known) for side in tables for key, limit in tables[side].items()]
    if not found:
        raise LoadTestError(f"{path}: no threshold in it")
    twice = {threshold.key for threshold in found if sum(t.key == threshold.key for t in found) > 1}
    if twice:
        raise LoadTestError(f"{path}: {min(twice)} stands in both tables")
    return found


def _one(path: Path, side: str, key: str, limit: object, known: Collection[str]) -> Threshold:
    if key not in known:
        raise LoadTestError(f"{path}: {key} is not measured; there are {', '.join(known)}")
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
        raise LoadTestError(f"{path}: {key} must be a number")
    return Threshold(key, side, float(limit))
