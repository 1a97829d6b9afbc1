"""Line charts as SVG, for pages that open without a server, a network or a script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Self

from markupsafe import Markup

Points = Sequence[tuple[int, float]]

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 10, 26
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
DRAWN = 300
"""Buckets of a curve that has more points: of each the lowest and the highest are drawn, so no peak goes."""


def line_chart(curves: Mapping[str, Points]) -> Markup:
    """Draws values over steps, each curve with its name and its last value below; `curves` is not empty."""
    curves = {name: thin(points) for name, points in curves.items()}
    scale = _Scale.around([point for points in curves.values() for point in points])
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img">').format(WIDTH, HEIGHT), *_axes(scale)]
    for colour, (name, points) in zip(cycle(COLOURS), curves.items(), strict=False):
        parts += _curve(scale, name, points, colour)
    return Markup("").join([*parts, Markup("</svg>"), _legend(curves)])


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where steps and values lie in the drawing."""

    first: int
    last: int
    y_ticks: list[float]

    @classmethod
    def around(cls, points: Points) -> Self:
        steps, values = [step for step, _ in points], [value for _, value in points]
        return cls(min(steps), max(steps), ticks(min(values), max(values)))

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / max(self.last - self.first, 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(scale: _Scale) -> list[Markup]:
    line = Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    mark = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    x_ticks = [at for at in ticks(scale.first, scale.last, whole=True) if scale.first <= at <= scale.last]
    return [
        *(
            line.format(LEFT, scale.y(at), WIDTH - RIGHT, LEFT - 6, scale.y(at) + 4, number(at))
            for at in scale.y_ticks
        ),
        *(mark.format(scale.x(at), HEIGHT - 8, number(at)) for at in x_ticks),
    ]


def _curve(scale: _Scale, name: str, points: Points, colour: str) -> list[Markup]:
    path = " ".join(f"{scale.x(step):.1f},{scale.y(value):.1f}" for step, value in points)
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}"><title>{}, step {}: {}</title></circle>')
    radius = 2.5 if len(points) < 40 else 1.2
    return [
        Markup('<polyline points="{}" stroke="{}"/>').format(path, colour),
        *(
            dot.format(scale.x(step), scale.y(value), radius, colour, name, step, number(value))
            for step, value in points
        ),
    ]


def thin(points: Points) -> Points:
    """At most some hundreds of points: the lowest and the highest of each stretch, and the last."""
    if len(points) <= 2 * DRAWN:
        return points
    size = math.ceil(len(points) / DRAWN)
    kept = set(points[-1:])
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(kept)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers around a range, three to seven of them: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        margin = 1.0 if whole else max(abs(low), 1e-6) / 2
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 5)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number as short as a person reads it."""
    return f"{value:.4g}"


def _legend(curves: Mapping[str, Points]) -> Markup:
    item = Markup('<span><i style="background:{}"></i>{}: {}</span>')
    items = [
        item.format(colour, name, number(points[-1][1]))
        for colour, (name, points) in zip(cycle(COLOURS), curves.items(), strict=False)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup(" ").join(items))
