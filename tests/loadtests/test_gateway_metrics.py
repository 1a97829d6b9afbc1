"""Reading the gateway's metrics: sums, what is under way, and quantiles as Prometheus computes them."""

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loadtests.errors import LoadTestError
from loadtests.gateway_metrics import parse, quantile, total, under_way


def text(values: list[float], *, in_flight: int = 1) -> str:
    registry = CollectorRegistry()
    histogram = Histogram("bonsai_gateway_own", "o", ["mode"], buckets=(0.5, 1.0, 2.0), registry=registry)
    for value in values:
        histogram.labels("a").observe(value)
        histogram.labels("b").observe(9.0)
    counter = Counter("bonsai_gateway_errors", "e", ["code"], registry=registry)
    counter.labels("x").inc(2)
    counter.labels("y").inc(3)
    for name, value in (
        ("in_flight_requests", in_flight),
        ("queued_requests", 2),
        ("candidate_slots_in_use", 8),
    ):
        Gauge(f"bonsai_gateway_{name}", "g", registry=registry).set(value)
    return generate_latest(registry).decode()


def test_a_metric_is_summed_over_its_labels() -> None:
    assert total(parse(text([])), "errors_total") == 5


def test_a_metric_that_is_not_there_is_no_zero() -> None:
    with pytest.raises(LoadTestError, match="no metric bonsai_gateway_nothing"):
        total(parse(text([])), "nothing")


def test_the_look_itself_is_not_under_way() -> None:
    assert under_way(parse(text([], in_flight=4))) == 3 + 2 + 8


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.2] * 4, 0.5, 0.25),  # half-way through the first bucket
        ([0.2, 0.2, 0.7, 0.7], 0.5, 0.5),
        ([0.2, 0.2, 0.7, 0.7], 0.75, 0.75),
        ([0.2, 1.5], 1.0, 2.0),
        ([0.2, 5.0], 0.9, math.inf),
    ],
)
def test_quantiles_by_hand(values: list[float], share: float, expected: float) -> None:
    assert quantile({}, parse(text(values)), "own", {"mode": "a"}, share) == pytest.approx(expected)


def test_only_what_came_between_two_looks_counts() -> None:
    before, after = parse(text([0.2] * 10)), parse(text([0.2] * 10 + [1.5] * 2))
    assert quantile(before, after, "own", {"mode": "a"}, 0.5) == pytest.approx(1.5)
    assert math.isnan(quantile(after, after, "own", {"mode": "a"}, 0.5))
    assert math.isnan(quantile({}, {}, "own", {"mode": "a"}, 0.5))
