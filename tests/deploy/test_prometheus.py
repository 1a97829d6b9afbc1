"""A real Prometheus scrapes a running stack under load: every query of every panel returns data, every rule
is evaluated, and every metric that an alert names is there."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import watch
from deploy.grafana import picture
from deploy.grafana.__main__ import DASHBOARDS
from loadtests.processes import free_port
from tests.deploy import watched_stack
from tests.deploy.prometheus import program
from tests.deploy.watched_stack import Targets

pytestmark = pytest.mark.slow
PATIENCE_S = 90.0
"""From the first look on, until everything must be there; it takes 10 to 20 s."""
TIME_SHOWN = {"$__rate_interval": "20s", "$__range": "10m"}
"""What Grafana puts in; four scrapes at least."""
QUERIES = {
    f"{board.uid}: {panel.title}: {query.legend}": query.expr
    for board in DASHBOARDS
    for panel in board.panels
    for query in panel.queries
}
DEAD = "127.0.0.1:1"
"""Nothing listens on port 1: a gateway that is down."""


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def has_data(self, expression: str) -> bool:
        """Whether a query gives a number now; 0 / 0 is none."""
        for name, value in TIME_SHOWN.items():
            expression = expression.replace(name, value)
        found = self.ask("query", query=expression)["result"]
        return any(not isnan(float(series["value"][1])) for series in found)

    def rules(self) -> list[dict[str, Any]]:
        """As it has evaluated them."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It, watching the stack under load."""
    program("prometheus")  # before the stack is started for nothing
    with (
        watched_stack.running(tmp_path_factory.mktemp("stack")) as targets,
        started(tmp_path_factory.mktemp("prometheus"), targets) as found,
    ):
        yield found


@contextmanager
def started(folder: Path, targets: Targets) -> Iterator[Prometheus]:
    """It, with our configuration but for addresses and a shorter interval."""
    jobs = {job: [place] for job, place in vars(targets).items()}
    jobs["gateway"].append(DEAD)
    with watch.prometheus(folder, jobs, port=free_port(), interval_s=1) as url:
        yield Prometheus(url)


def until(look: Callable[[], list[str]]) -> list[str]:
    """Look again and again, until there are no complaints; the last ones."""
    deadline = time.monotonic() + PATIENCE_S
    while (complaints := look()) and time.monotonic() < deadline:
        time.sleep(1)  # a scrape
    return complaints


def test_every_query_of_every_panel_returns_data(prometheus: Prometheus) -> None:
    assert len(QUERIES) > 60
    waiting = dict(QUERIES)

    def complaints() -> list[str]:
        for name in [name for name, query in waiting.items() if prometheus.has_data(query)]:
            del waiting[name]
        return list(waiting)

    assert until(complaints) == []


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def complaints() -> list[str]:
        return [f"{rule['name']}: {rule['health']}" for rule in prometheus.rules() if rule["health"] != "ok"]

    assert until(complaints) == []
    assert {rule["type"] for rule in prometheus.rules()} == {"alerting", "recording"}


def test_every_metric_that_a_rule_names_is_there(prometheus: Prometheus) -> None:
    named = {
        name
        for rule in prometheus.rules()
        for name in re.findall(r"\b(?:bonsai_\w+|bonsai:[\w:]+|up\b)", rule["query"])
    }
    assert len(named) > 20

    def complaints() -> list[str]:
        return [name for name in sorted(named) if not prometheus.has_data(name)]

    assert until(complaints) == []


def test_a_gateway_that_is_down_is_noticed(prometheus: Prometheus) -> None:
    def complaints() -> list[str]:
        [rule] = [rule for rule in prometheus.rules() if rule["name"] == "BonsaiGatewayDown"]
        found = [alert["labels"]["instance"] for alert in rule["alerts"]]
        return [] if found == [DEAD] else [f"{found} instead of {DEAD}"]

    assert until(complaints) == []


def test_a_picture_is_drawn_of_what_it_knows(
    prometheus: Prometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "overview.png"
    asked = ["--minutes", "2", "--output", str(output), "--prometheus"]
    assert picture.main([*asked, prometheus.url]) == 0
    figure = picture.draw(DASHBOARDS[0], picture.Source(prometheus.url, 120))
    shown = [bool(axes.lines) or axes.texts[0].get_text() != picture.NOTHING for axes in figure.axes]
    assert shown == [True] * len(DASHBOARDS[0].panels)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert picture.main([*asked, f"http://{DEAD}"]) == 1
    assert "no answer from" in capsys.readouterr().err


def test_a_prometheus_watches_for_as_long_as_a_command_runs(
    prometheus: Prometheus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port, output = free_port(), tmp_path / "overview.png"
    # What is watched here is the other Prometheus; the command asks its own what it sees.
    ask = (
        "import sys, time, httpx\n"
        "url = f'http://127.0.0.1:{sys.argv[1]}/api/v1/query?query=up'\n"
        "while len(found := httpx.get(url).json()['data']['result']) < 2: time.sleep(0.2)\n"
        "print(sorted(row['metric']['job'] for row in found)); sys.exit(7)"
    )
    words = ["--gateway", prometheus.url.removeprefix("http://"), "--port", str(port), "--interval", "1"]
    words += ["--picture", str(output), "--", sys.executable, "-c", ask, str(port)]
    assert watch.main(words) == 7
    assert "['gateway', 'prometheus']" in capfd.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_watched_is_one_line(
    prometheus: Prometheus, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = prometheus.url.rpartition(":")[2]
    assert watch.main(["--port", taken, "--", "true"]) == 2
    assert f"watch: port {taken} is in use" in capfd.readouterr().err
    assert watch.main(["--port", str(free_port()), "--", "no-such-program-at-all"]) == 2
    assert "watch: no-such-program-at-all: No such file" in capfd.readouterr().err


def test_vllm_names_its_metrics_as_the_dashboards_do() -> None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("no vLLM here")
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    shown = watched_stack.VLLM_COUNTERS + watched_stack.VLLM_GAUGES + watched_stack.VLLM_HISTOGRAMS
    assert [name for name in shown if f'"vllm:{name}"' not in source] == []
