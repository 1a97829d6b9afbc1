"""Goodput, refusals and recovery by hand."""

import pytest

from loadtests.benches.overload import CAPACITY, figures, recovery_s
from loadtests.open_loop import Answer, Sample


def sample(at: float, took: float, error: str | None = None) -> Sample:
    return Sample(at, at, Answer(ended_at=at + took, error=error))


def test_figures_by_hand() -> None:
    samples = [
        sample(0.0, 0.2),
        sample(0.5, 0.4),
        sample(0.9, 0.3),  # good, but after the overload
        sample(0.1, 0.004, "refused"),
        sample(0.2, 0.008, "refused without Retry-After"),
        sample(0.3, 1.0, "reset"),
        sample(1.0, 0.2),
    ]
    found = figures(samples, 0.0, 1.0, unloaded_s=0.2)
    assert found == pytest.approx(
        {
            "goodput / capacity": 2 / CAPACITY,
            "requests without a whole answer or a refusal": 1,
            "refusals without a whole number of seconds in Retry-After": 1,
            "accepted p99 / unloaded p99": 2.0,
            "refused p99": 8.0,
            "recovery": 0.0,
            "unloaded p99": 200.0,
            "refused": 2.0,
        }
    )


def test_recovery_ends_with_the_last_request_that_suffered() -> None:
    samples = [
        sample(0.9, 5.0),  # sent under overload
        sample(1.1, 0.1, "refused"),
        sample(1.2, 0.1),
        sample(1.3, 0.4),
        sample(1.4, 0.2),
    ]
    assert recovery_s(samples, 1.0, 0.3) == pytest.approx(0.3)
