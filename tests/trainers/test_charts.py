"""Line charts as SVG: round ticks, points where they belong, peaks that stay."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.charts import BOTTOM, DRAWN, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.5, 2.9, [0.5, 1, 1.5, 2, 2.5, 3]),
        (-3, 12, [-5, 0, 5, 10, 15]),
        (0.04, 0.049, [0.04, 0.042, 0.044, 0.046, 0.048, 0.05]),
        (2, 2, [1, 1.5, 2, 2.5, 3]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


def test_ticks_of_steps_are_whole() -> None:
    assert ticks(1, 2, whole=True) == [1, 2]
    assert ticks(5, 5, whole=True) == [4, 5, 6]


FINITE = st.floats(-1e30, 1e30)


@given(FINITE, FINITE)
def test_ticks_enclose_the_range(first: float, second: float) -> None:
    low, high = sorted((first, second))
    found = ticks(low, high)
    span = max(high - low, abs(low))
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-9 * span
    assert found[-1] >= high - 1e-9 * span


def test_a_chart_by_hand() -> None:
    chart = line_chart({"loss": [(0, 0.0), (10, 1.0)]})
    left, right, bottom = float(LEFT), float(WIDTH - RIGHT), float(HEIGHT - BOTTOM)
    assert f'points="{left},{bottom} {right},{float(TOP)}"' in chart
    assert "<title>loss, step 10: 1</title>" in chart
    assert "loss: 1</span>" in chart


def test_names_are_escaped() -> None:
    chart = line_chart({"<b>&": [(1, 1.0)]})
    assert "<b>" not in chart
    assert "&lt;b&gt;&amp;" in chart


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30))
def test_any_chart_is_xml_within_its_frame(values: list[float]) -> None:
    root = ElementTree.fromstring(f"<d>{line_chart({'v': list(enumerate(values))})}</d>")
    for circle in root.iter("circle"):
        assert LEFT - 0.1 <= float(circle.get("cx", "nan")) <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= float(circle.get("cy", "nan")) <= HEIGHT - BOTTOM + 0.1


def test_a_long_curve_is_thinned_and_keeps_its_peaks() -> None:
    points = [(step, math.sin(step / 500)) for step in range(10_000)]
    points[5001] = (5001, 99.0)
    kept = thin(points)
    assert len(kept) <= 2 * DRAWN + 1
    assert {points[5001], points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert len(re.findall("<circle", line_chart({"v": points}))) == len(kept)


def test_a_short_curve_is_left_as_it_is() -> None:
    points = [(step, 0.0) for step in range(2 * DRAWN)]
    assert thin(points) == points
