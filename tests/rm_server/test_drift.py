"""The metrics of drift, on scores whose place is plain."""

from __future__ import annotations

import pytest

from rm_server.calibration import Distribution
from rm_server.drift import WINDOW, Drift
from rm_server.metrics import Metrics
from tests.rm_server.fakes import sample

LEVELS = (0.001, *(k / 10 for k in range(1, 10)), 0.999)
UNIFORM = Distribution(999, 0.5, 0.25, LEVELS, LEVELS)


def deciles(metrics: Metrics) -> list[float]:
    return [sample(metrics, "score_decile_total", model="m", decile=str(k)) for k in range(1, 11)]


def test_scores_are_counted_by_decile(metrics: Metrics) -> None:
    drift = Drift("m", UNIFORM, metrics)
    for score in (-5.0, 0.05, 0.15, 0.55, 0.95, 5.0):
        drift.note(score)
    assert deciles(metrics) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]


def test_scores_like_the_calibrations_fill_the_deciles_evenly(metrics: Metrics) -> None:
    drift = Drift("m", UNIFORM, metrics)
    for k in range(1000):
        drift.note((k + 0.5) / 1000)
    assert deciles(metrics) == [100] * 10
    assert sample(metrics, "score_mean_shift", model="m") == pytest.approx(0)


def test_the_shift_is_of_the_latest_scores_in_deviations(metrics: Metrics) -> None:
    drift = Drift("m", UNIFORM, metrics)
    drift.note(1.0)
    assert sample(metrics, "score_mean_shift", model="m") == pytest.approx(2)  # (1 - 0.5) / 0.25
    drift.note(0.0)
    assert sample(metrics, "score_mean_shift", model="m") == pytest.approx(0)
    for _ in range(WINDOW):
        drift.note(0.25)
    assert sample(metrics, "score_mean_shift", model="m") == pytest.approx(-1)
