"""A dashboard's panels, drawn from a Prometheus without Grafana: for a README, a report, a mail.

    python -m deploy.grafana.picture --prometheus http://127.0.0.1:9090 --minutes 60 --output overview.png

Numbers stand for stats, lines for all else.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from PIL import Image

from deploy.grafana.__main__ import DASHBOARDS
from deploy.grafana.panels import Dashboard, Panel

STEPS = 120
"""Points of a line."""
MIN_RATE_S = 60
UNITS = {"percentunit": "%", "s": "s", "reqps": "per second", "short": ""}
NOTHING = "no data"
COLOURS = 64
MAX_LINES = 8
"""More than that in one panel would hide each other."""


class Source:
    """A Prometheus and a span of time."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._end = time.time()
        self._seconds = seconds
        self._step = seconds / STEPS

    def lines(self, expression: str) -> list[dict[str, Any]]:
        """The series of a query over the span; httpx.HTTPError where there is no answer."""
        rate = max(4 * self._step, MIN_RATE_S)
        expression = expression.replace("$__rate_interval", f"{rate:.0f}s")
        expression = expression.replace("$__range", f"{self._seconds:.0f}s")
        span = {"start": self._end - self._seconds, "end": self._end, "step": self._step}
        answer = httpx.get(f"{self._url}/api/v1/query_range", params={"query": expression, **span})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return found


def draw(board: Dashboard, source: Source) -> Figure:
    """All of its panels, row by row."""
    lines = [
        (row.panels[start : start + row.across], row.across)
        for row in board.rows
        for start in range(0, len(row.panels), row.across)
    ]
    heights = [1.0 if panels[0].kind == "stat" else 2.6 for panels, _ in lines]
    figure = Figure(figsize=(14, sum(heights) + 0.6), dpi=110, layout="constrained")
    figure.suptitle(board.title)
    for part, (panels, across) in zip(
        figure.subfigures(len(lines), 1, height_ratios=heights, squeeze=False)[:, 0], lines, strict=True
    ):
        for place, panel in enumerate(panels):
            axes = part.add_subplot(1, across, place + 1)
            axes.set_title(panel.title, fontsize=9, loc="left")
            (_tell if panel.kind == "stat" else _plot)(axes, panel, source)
    return figure


def _tell(axes: Axes, panel: Panel, source: Source) -> None:
    axes.set_axis_off()
    values = [float(series["values"][-1][1]) for series in source.lines(panel.queries[0].expr)]
    if not any(map(isfinite, values)):  # of nothing, as 0 / 0
        axes.text(0.0, 0.35, NOTHING, fontsize=12, color="grey")
    for value in filter(isfinite, values):
        color = "green" if panel.good is None or value >= panel.good else "red"
        text = f"{100 * value:.2f} %" if panel.unit == "percentunit" else f"{value:g}"
        axes.text(0.0, 0.35, text, fontsize=20, color=color)


def _plot(axes: Axes, panel: Panel, source: Source) -> None:
    scale = 100 if panel.unit == "percentunit" else 1
    for query in panel.queries:
        for series in source.lines(query.expr)[:MAX_LINES]:
            times = [datetime.fromtimestamp(at, UTC) for at, _ in series["values"]]
            values = [scale * float(value) for _, value in series["values"]]
            if not any(map(isfinite, values)):
                continue
            axes.plot(times, values, linewidth=1, label=_name(query.legend, series["metric"]))
    if not axes.lines:
        axes.set_axis_off()
        axes.text(0.0, 0.5, NOTHING, fontsize=12, color="grey")
        return
    axes.set_ylabel(UNITS[panel.unit], fontsize=8)
    low, high = axes.get_ylim()
    low = min(0.0, low)
    axes.set_ylim(low, high + 0.1 * (high - low))
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, a third as large as one of all."""
    content = BytesIO()
    figure.savefig(content, format="png")
    Image.open(content).convert("RGB").quantize(COLOURS).save(path, format="png", optimize=True)


def _name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; the exit code."""
    boards = {board.uid: board for board in DASHBOARDS}
    parser = argparse.ArgumentParser(
        prog="python -m deploy.grafana.picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--dashboard", choices=boards, default="bonsai-overview")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    options = parser.parse_args(argv)
    try:
        figure = draw(boards[options.dashboard], Source(options.prometheus, 60 * options.minutes))
    except httpx.HTTPError as error:
        print(f"no answer from {options.prometheus}: {type(error).__name__}", file=sys.stderr)
        return 1
    save(figure, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
