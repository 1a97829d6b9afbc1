"""The dashboards' files are what the generator writes, and ask for metrics that servers have."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana.__main__ import DASHBOARDS, FOLDER, main
from deploy.grafana.panels import GRID, Dashboard

ROOT = Path(__file__).parents[2]
PROVISIONING = FOLDER.parent / "provisioning"
KNOWN = re.findall(r"^\| `(\w+)", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
METRIC = re.compile(r"\bbonsai_(?:gateway|rm|training)_\w+")


def expressions() -> list[str]:
    """Of every panel, and of every rule."""
    rules = [
        rule["expr"]
        for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    return [query.expr for board in DASHBOARDS for panel in board.panels for query in panel.queries] + rules


def test_the_files_are_as_they_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_check_finds_what_is_changed_missing_or_strange(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "bonsai-overview.json").write_text("{}")
    (tmp_path / "bonsai-upstreams.json").unlink()
    (tmp_path / "mine.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert re.findall(r"[\w-]+\.json", said) == ["bonsai-overview.json", "bonsai-upstreams.json", "mine.json"]
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0


def test_queries_name_metrics_that_are_documented() -> None:
    names = {name for expression in expressions() for name in METRIC.findall(expression)}
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in KNOWN else name for name in names}
    assert plain <= set(KNOWN)


def test_figures_of_runs_are_some_that_trainers_write() -> None:
    names = {
        name
        for expression in expressions()
        for several in re.findall(r'\bname=~"([^"]+)"', expression)
        for name in several.split("|")
    }
    source = "\n".join(file.read_text() for file in (ROOT / "trainers").rglob("*.py"))
    made = {name.removeprefix("eval_") for name in names}  # an evaluation's figures are named after others
    assert len(names) > 20
    assert [name for name in sorted(made) if f'"{name}"' not in source] == []


def test_every_metric_that_the_servers_have_is_in_some_panel_or_rule() -> None:
    text = "\n".join(expressions())
    assert [name for name in KNOWN if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", text)] == []


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_panels_lie_beside_each_other_inside_the_grid(board: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    panels = board.render()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(board.panels) + len(board.rows)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert all(x < GRID for x, _ in cells)
        taken |= cells


def test_grafana_is_pointed_to_prometheus_and_to_the_files() -> None:
    [source] = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "bonsai.yaml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    assert source["url"] == "http://prometheus:9090"


def test_every_panel_says_what_it_shows() -> None:
    for board in DASHBOARDS:
        titles = [panel.title for panel in board.panels]
        assert len(set(titles)) == len(titles)
        assert all(panel.description and panel.queries for panel in board.panels)
        assert json.loads((FOLDER / f"{board.uid}.json").read_text())["title"] == board.title
