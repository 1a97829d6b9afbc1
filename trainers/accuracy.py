"""On which held-out preferences a reward model is right, and whether it knows.

accuracy.json of a run: the share of preferences in which the best answer has the highest reward, over all of
them and by slice:

    source        the data's `source` column, or the file
    length        of the longest answer with its prompt, in tokens, in quarters of the data
    longer        whether the best answer is the longest: a model that goes by length fails where it is not
    margin        the data's `margin`, in quarters, where there are any
    candidates    how many answers the best was chosen from: chance is 1 in so many
    confidence    the probability that the model gives its own choice, softmax of the raw rewards: of a
                  calibrated model the accuracy of each slice is its mean confidence

Every share comes with Wilson's 95 % interval (1927). The expected calibration error is the mean distance of
accuracy and confidence over the slices of confidence, weighted by their sizes (Naeini et al. 2015).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from trainers import checkpoint, normalization
from trainers.data import Preference
from trainers.run import Run

FILE = "accuracy.json"
QUARTERS = 4
CONFIDENCES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ENOUGH = 30
"""Preferences from which on a slice is named in the run's output."""
Z = 1.959964
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One held-out preference, and what the model made of it."""

    right: bool
    confidence: float
    """The probability of the answer with the highest reward."""
    candidates: int
    length: int
    longer: str
    margin: float
    source: str


def judge(
    run: Run, model: Any, preferences: Sequence[Preference], pad_token_id: int, batch_size: int
) -> list[Judged]:
    """What a model, not yet normalised, makes of preferences, in their order."""
    answers = normalization.candidates(preferences)
    raw_S = normalization.score_in_order(run, model, answers, pad_token_id, batch_size).double()
    rewards = iter(raw_S.split([len(preference.candidates) for preference in preferences]))
    return [_judge(preference, next(rewards)) for preference in preferences]


def _judge(preference: Preference, rewards_K: torch.Tensor) -> Judged:
    best, *others = map(len, preference.candidates)
    return Judged(
        right=bool(rewards_K[0] > rewards_K[1:].max()),
        confidence=float(rewards_K.softmax(0).max()),
        candidates=len(preference.candidates),
        length=max(best, *others),
        longer="best" if best > max(others) else "another" if best < max(others) else "as long",
        margin=preference.margin,
        source=preference.source,
    )


def summarize(judged: Sequence[Judged]) -> dict[str, Any]:
    """The content of accuracy.json."""
    lengths = buckets([item.length for item in judged])
    by: dict[str, Callable[[Judged], str]] = {
        "source": lambda item: item.source,
        "length": lambda item: bucket_of(item.length, lengths),
        "longer": lambda item: item.longer,
        "candidates": lambda item: str(item.candidates),
        "confidence": lambda item: bucket_of(item.confidence, CONFIDENCES),
    }
    if any(item.margin for item in judged):
        margins = buckets([item.margin for item in judged])
        by["margin"] = lambda item: bucket_of(item.margin, margins)
    slices = {name: _slices(judged, key) for name, key in by.items()}
    error = sum(
        part["preferences"] * abs(part["accuracy"] - part["confidence"]) for part in slices["confidence"]
    )
    whole = _share(judged) | {"expected_calibration_error": error / len(judged)}
    return whole | {"by": slices}


def report(run: Run, judged: Sequence[Judged]) -> None:
    """Writes accuracy.json, and says where the model is worst."""
    summary = summarize(judged)
    run.devices.on_main(lambda: checkpoint.write_json(run.output / FILE, summary))
    low, high = summary["ci95"]
    text = f"held-out accuracy {summary['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {len(judged)} preferences"
    named = [
        (part["accuracy"], f"{name} {part['slice']}")
        for name, parts in summary["by"].items()
        for part in parts
        if name != "confidence" and ENOUGH <= part["preferences"] < len(judged)
    ]
    if named:
        text += ", worst of {1}: {0:.1%}".format(*min(named))
    run.say(f"{text}; by slice in {FILE}")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; inside [0, 1], and honest for few trials."""
    share, weight = successes / trials, Z * Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def buckets(values: Sequence[float]) -> tuple[float, ...]:
    """Edges that cut the values into quarters of like size; fewer where many values are the same."""
    ordered = sorted(values)
    edges = [ordered[len(ordered) * part // QUARTERS] for part in range(QUARTERS)]
    return tuple(sorted({*edges, ordered[-1]}))


def bucket_of(value: float, edges: Sequence[float]) -> str:
    """The half-open range that holds a value, the last one closed: `3 to 7`."""
    if len(edges) == 1:
        return f"{edges[0]:g}"
    ranges = list(pairwise(edges))
    low, high = next((part for part in ranges if value < part[1]), ranges[-1])
    return f"{low:g} to {high:g}"


def _slices(judged: Iterable[Judged], key: Callable[[Judged], str]) -> list[dict[str, Any]]:
    groups: dict[str, list[Judged]] = {}
    for item in judged:
        groups.setdefault(key(item), []).append(item)
    return [{"slice": name} | _share(groups[name]) for name in sorted(groups, key=_natural)]


def _natural(name: str) -> tuple[float, str]:
    try:
        return float(name.split(" ", 1)[0]), name
    except ValueError:
        return math.inf, name


def _share(judged: Sequence[Judged]) -> dict[str, Any]:
    right = sum(item.right for item in judged)
    return {
        "preferences": len(judged),
        "accuracy": right / len(judged),
        "ci95": list(wilson(right, len(judged))),
        "confidence": fmean(item.confidence for item in judged),
    }
