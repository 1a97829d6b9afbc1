"""The distribution of scores that a judge is known by, and what lies outside it.

The trainer scores answers of the reference policy and stores quantiles of their normalised rewards in the
checkpoint (alignment.json, `calibration`); `python -m rm_server.calibrate` does the same for an ensemble and
for checkpoints of others. Quantiles are Weibull's, at p (n + 1) of n ordered samples: a new sample of the
same distribution falls below such a quantile with probability p, whatever the distribution is. So the
rules' false-alarm rates hold by construction:

    score     outside the quantiles 0.001 and 0.999            0.2 %, or 2 / (n + 1) where n < 999
    spread    of an ensemble, above its quantile 0.99          1 %, or 1 / (n + 1) where n < 99
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOWEST, HIGHEST = 0.001, 0.999
WIDEST = 0.99


@dataclass(frozen=True)
class Distribution:
    """Of one quantity over `samples` answers. `levels` and `values` are its quantiles, both ascending."""

    samples: int
    mean: float
    std: float
    levels: tuple[float, ...]
    values: tuple[float, ...]

    def level(self, value: float) -> float:
        """Which share of the samples lies below: linear between quantiles, the outermost level beyond."""
        if value <= self.values[0]:
            return self.levels[0]
        if value >= self.values[-1]:
            return self.levels[-1]
        right = bisect.bisect_right(self.values, value)
        low, high = self.values[right - 1 : right + 1]
        below, above = self.levels[right - 1 : right + 1]
        return below + (above - below) * (value - low) / (high - low)

    def at(self, level: float) -> float | None:
        """The quantile, where it was stored."""
        return self.values[self.levels.index(level)] if level in self.levels else None

    def outside(self, value: float) -> bool | None:
        """Whether a score lies outside the quantiles 0.001 and 0.999; None where they were not stored."""
        low, high = self.at(LOWEST), self.at(HIGHEST)
        return None if low is None or high is None else not low <= value <= high

    def too_wide(self, value: float) -> bool | None:
        """Whether a spread lies above the quantile 0.99; None where it was not stored."""
        limit = self.at(WIDEST)
        return None if limit is None else value > limit


@dataclass(frozen=True)
class Calibration:
    """What is known of a judge's scores, by method of its ensemble, and of its members' spread.

    A judge of one member has one method, "mean", and no spread.
    """

    scores: Mapping[str, Distribution]
    spread: Distribution | None = None

    def doubts(
        self, method: str, scores: Sequence[float | None], spreads: Sequence[float | None]
    ) -> list[bool | None] | None:
        """By response, whether its score or its spread is one that the calibration hardly ever saw; None
        where that cannot be said, of one or of all."""
        found = [
            None if score is None else self._doubt(method, score, spread)
            for score, spread in zip(scores, spreads, strict=True)
        ]
        return found if any(doubt is not None for doubt in found) else None

    def levels(self, method: str, scores: Sequence[float | None]) -> list[float | None] | None:
        """By response, where its score lies; None where that cannot be said, of one or of all."""
        known = self.scores.get(method)
        return [None if score is None else known.level(score) for score in scores] if known else None

    def _doubt(self, method: str, score: float, spread: float | None) -> bool | None:
        scores = self.scores.get(method)
        alarms = (
            scores.outside(score) if scores else None,
            self.spread.too_wide(spread) if self.spread and spread is not None else None,
        )
        known = [alarm for alarm in alarms if alarm is not None]
        return any(known) if known else None


def read_calibration(value: Any) -> Calibration | None:
    """What alignment.json holds under `calibration`; None where that is nothing. Raises ValueError."""
    return None if value is None else Calibration({"mean": read_distribution(value)})


def read_distribution(value: Any) -> Distribution:
    """{"samples", "mean", "std", "quantiles": {LEVEL: VALUE}}. Raises ValueError on anything else."""
    try:
        pairs = sorted((float(level), float(at)) for level, at in value["quantiles"].items())
        levels, values = zip(*pairs, strict=True)
        found = Distribution(int(value["samples"]), float(value["mean"]), float(value["std"]), levels, values)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError("not a distribution of scores") from error
    numbers = (found.mean, found.std, *values)
    in_order = list(values) == sorted(values) and levels[0] >= 0 and levels[-1] <= 1
    if not (found.samples > 0 and found.std >= 0 and in_order and all(map(math.isfinite, numbers))):
        raise ValueError("not a distribution of scores")
    return found


@dataclass(frozen=True)
class Stored:
    """What rm_server.calibrate wrote: of which version, with which lambda, and what it found."""

    version: str
    uncertainty_lambda: float
    calibration: Calibration


def read_stored(value: Any) -> Stored:
    """Raises ValueError."""
    try:
        version, uncertainty_lambda = str(value["version"]), float(value["uncertainty_lambda"])
        scores, spread = value["scores"], value.get("spread")
        distributions = {str(method): read_distribution(item) for method, item in scores.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("not a stored calibration") from error
    known = None if spread is None else read_distribution(spread)
    return Stored(version, uncertainty_lambda, Calibration(distributions, known))
