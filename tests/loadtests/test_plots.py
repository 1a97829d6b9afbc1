"""Axes with round numbers, and points where they belong."""

import math

from hypothesis import given
from hypothesis import strategies as st

from loadtests.plots import MAX_POINTS, Axis, Series, plot, thinned


def test_ticks_are_round() -> None:
    assert Axis.of([0, 100]).ticks() == [0, 20, 40, 60, 80, 100]
    assert Axis.of([-1, 1]).ticks() == [-1, -0.5, 0, 0.5, 1]
    assert Axis.of([12, 450], log=True).ticks() == [10, 20, 50, 100, 200, 500]
    assert Axis.of([0.5, 90_000], log=True).ticks() == [1, 10, 100, 1000, 10_000, 100_000]


@given(st.lists(st.floats(-1e9, 1e9), max_size=20), st.booleans())
def test_every_value_has_a_place_on_its_axis(values: list[float], log: bool) -> None:
    axis = Axis.of(values, log=log)
    assert axis.low < axis.high
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert len(axis.ticks()) <= 20


def test_places_by_hand() -> None:
    assert Axis(0, 10).place(2.5) == 0.25
    assert math.isclose(Axis(1, 100, log=True).place(10), 0.5)


def test_the_highest_of_many_points_is_kept() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[777] = (777.0, 99.0)
    kept = thinned(points)
    assert len(kept) == MAX_POINTS
    assert (777.0, 99.0) in kept


def test_what_is_no_number_is_left_out_and_labels_are_escaped() -> None:
    picture = plot("a < b", "y", [Series("s", [(0, 1), (1, math.nan), (2, 3)])])
    assert "a &lt; b" in picture
    assert "nan" not in picture
    assert plot("x", "y", []).startswith("<svg")
