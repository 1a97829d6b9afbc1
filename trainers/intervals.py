"""Means with 95 % intervals, over prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Mean:
    """A mean over prompts; `ci95` is mean -/+ 1.96 standard errors."""

    mean: float
    ci95: tuple[float, float]

    @property
    def clearly_positive(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.ci95[0] > 0


def mean(values: Sequence[float]) -> Mean:
    """The mean of one value a prompt. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two prompts")
    middle, error = fmean(values), stdev(values) / math.sqrt(len(values))
    return Mean(middle, (middle - 1.96 * error, middle + 1.96 * error))


def paired_gain(after: Sequence[float], before: Sequence[float]) -> Mean:
    """The mean gain from `before` to `after`, paired by prompt. Raises ValueError for unequal lengths."""
    return mean([a - b for a, b in zip(after, before, strict=True)])
