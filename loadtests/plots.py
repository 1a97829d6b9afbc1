"""Plots as SVG, to stand inside a page: a line or dots for each series, axes with round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 42
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which people of any colour vision tell apart."""
MAX_POINTS = 1500
ORDERS = 15
"""A logarithmic axis reaches down by so many powers of ten at most."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line through its points, or dots."""

    name: str
    points: Sequence[Point]
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """From low to high, linear or logarithmic; `place` is between 0 and 1."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], *, log: bool = False) -> "Axis":
        """One that holds all values: a linear axis with 0, a logarithmic one from round number to round
        number of those above 0."""
        if log:
            above = [value for value in values if value > 0] or [1.0]
            high = max(above)
            low = max(min(above), high / 10.0**ORDERS)
            return cls(_round_under(low), _round_over(max(high, low * 2)), log=True)
        return cls(min(0.0, *values, 0.0), max(0.0, *values, 0.0) or 1.0)

    def place(self, value: float) -> float:
        """Where a value stands; outside of the axis at its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers on it, about six."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            step = _step((self.high - self.low) / 5)
            found = [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = (self.low if self.log else self.high - self.low) * 1e-9
        return [tick for tick in found if self.low - slack <= tick <= self.high + slack]


def _step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, not below what is wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= wanted * (1 - 1e-9))


def _round_over(value: float) -> float:
    return _step(value)


def _round_under(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(k * power for k in (1, 2, 5) if k * power <= value * (1 + 1e-9))


def thinned(points: Sequence[Point]) -> list[Point]:
    """MAX_POINTS of them at most, evenly taken, the highest among them."""
    if len(points) <= MAX_POINTS:
        return list(points)
    kept = [points[k * len(points) // (MAX_POINTS - 1)] for k in range(MAX_POINTS - 1)]
    return [*kept, max(points, key=lambda point: point[1])]


def plot(x_label: str, y_label: str, series: Sequence[Series], *, log: bool = False) -> str:
    """The picture; with `log` its y axis is logarithmic. Points that are no numbers are left out."""
    drawn = [
        Series(one.name, thinned([p for p in one.points if all(map(math.isfinite, p))]), one.dots)
        for one in series
    ]
    points = [point for one in drawn for point in one.points]
    x_axis = Axis.of([x for x, _ in points])
    y_axis = Axis.of([y for _, y in points], log=log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_label} by {x_label}")}">',
        *_grid(x_axis, y_axis),
        *(_draw(one, COLOURS[k % len(COLOURS)], x_axis, y_axis) for k, one in enumerate(drawn)),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
        "</svg>",
    ]
    return "\n".join(parts)


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM), 1)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks():
        y = _y(y_axis, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_axis.ticks():
        x = _x(x_axis, tick)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    return parts


def _draw(one: Series, colour: str, x_axis: Axis, y_axis: Axis) -> str:
    places = [f"{_x(x_axis, x)} {_y(y_axis, y)}" for x, y in one.points]
    if not places:
        return ""
    if one.dots:  # each a line of no length with round ends: the shortest way to say a circle
        shape = "".join(f"M{place}h0" for place in places)
        return f'<path class="dots" stroke="{colour}" d="{shape}"/>'
    return f'<path class="line" stroke="{colour}" d="M{"L".join(places)}"/>'
