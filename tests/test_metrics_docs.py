"""docs/metrics.md lists every metric of servers and runs, its kind and labels, and none that is not there."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from gateway.metrics import Metrics as GatewayMetrics
from rm_server.metrics import Metrics as RewardServerMetrics
from trainers.exporter import FAMILIES

TEXT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<name>\w+)(?:\{(?P<labels>[\w,]+)\})?` \| (?P<kind>\w+) \| \S", re.MULTILINE)

Known = set[tuple[str, tuple[str, ...], str | None]]


def documented(prefix: str) -> Known:
    """(name, labels, kind) of the rows whose names begin so."""
    rows = [
        (row["name"], tuple(row["labels"].split(",")) if row["labels"] else (), row["kind"])
        for row in ROW.finditer(TEXT)
        if row["name"].startswith(prefix)
    ]
    assert len(rows) == len(set(rows))
    return set(rows)


def declared(registry: CollectorRegistry) -> Known:
    """The same of a registry. The library has no public way to a metric's labels before it has any values."""
    instruments = {*registry._collector_to_names}
    return {
        (each._name + ("_total" if each._type == "counter" else ""), each._labelnames, each._type)
        for each in instruments
        if isinstance(each, MetricWrapperBase)
    }


@pytest.mark.parametrize(
    ("prefix", "registry"),
    [("bonsai_gateway_", GatewayMetrics().registry), ("bonsai_rm_", RewardServerMetrics().registry)],
    ids=["gateway", "rm_server"],
)
def test_the_table_and_the_code_name_the_same_metrics(prefix: str, registry: CollectorRegistry) -> None:
    assert declared(registry) == documented(prefix)


def test_the_table_and_the_exporter_of_runs_name_the_same_metrics() -> None:
    known = {(name, labels, "gauge") for name, (labels, _) in FAMILIES.items()}
    assert documented("bonsai_training_") == known


def test_every_row_of_a_table_is_read() -> None:
    assert len(re.findall(r"^\| `", TEXT, re.MULTILINE)) == len(ROW.findall(TEXT))
