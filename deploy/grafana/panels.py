"""Dashboards as values, and as the JSON that Grafana reads. Grafana's grid is 24 wide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "heatmap"]

GRID = 24
HEIGHTS: dict[Kind, int] = {"timeseries": 8, "stat": 4, "heatmap": 8}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 39
"""Grafana 10.2 and later read it; what is older in it they bring up to date themselves."""
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Query:
    """PromQL, and what its series are called: text, or `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture. `unit` is Grafana's word; a stat is green from `good` on, red below."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    stacked: bool = False
    good: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: Sequence[Panel]
    across: int = 3
    """How many stand beside each other."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A page; `uid` is its name in addresses and that of its file."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]

    @property
    def panels(self) -> list[Panel]:
        """All, in order."""
        return [panel for row in self.rows for panel in row.panels]

    def render(self) -> dict[str, Any]:
        """As Grafana stores it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["bonsai"],
            "schemaVersion": SCHEMA,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [_LINKS],
            "templating": {"list": [_SOURCE]},
            "annotations": {"list": []},
            "panels": list(_laid_out(self.rows)),
        }


_LINKS = {"type": "dashboards", "tags": ["bonsai"], "title": "Bonsai", "asDropdown": True, "keepTime": True}
_SOURCE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def rate(metric: str, by: str = "", where: str = "") -> str:
    """How much a counter rises in a second, summed over all but the labels `by`."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{_select(where)}[{RATE}]))"


def quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    """Of what a histogram saw of late."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', labels, where)})"


def mean(histogram: str, by: str = "", where: str = "") -> str:
    """Of what a histogram saw of late; not for histograms of values that may be negative."""
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def quantiles(histogram: str, by: str = "", where: str = "") -> list[Query]:
    """The usual three."""
    name = f" {{{{{by}}}}}" if by else ""
    return [Query(quantile(q, histogram, by, where), f"p{q * 100:g}{name}") for q in (0.5, 0.95, 0.99)]


def _select(where: str) -> str:
    return f"{{{where}}}" if where else ""


def _laid_out(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": GRID, "h": 1},
        }
        y += 1
        width = GRID // row.across
        for start in range(0, len(row.panels), row.across):
            line = row.panels[start : start + row.across]
            height = max(HEIGHTS[panel.kind] for panel in line)
            for place, panel in enumerate(line):
                number += 1
                grid = {"x": place * width, "y": y, "w": width, "h": height}
                yield {"id": number, "gridPos": grid, **_panel(panel)}
            y += height


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(panel, *found) for found in zip("ABCDEF", panel.queries, strict=False)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"},
    "heatmap": {"calculate": False, "color": {"scheme": "Greens"}, "cellGap": 1},
}


def _target(panel: Panel, letter: str, query: Query) -> dict[str, Any]:
    target: dict[str, Any] = {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
    }
    if panel.kind == "stat":
        target |= {"instant": True}
    if panel.kind == "heatmap":
        target |= {"format": "heatmap", "legendFormat": "{{le}}"}
    return target


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "showPoints": "never",
        }
    if panel.good is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.good}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return defaults
