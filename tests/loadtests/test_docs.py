"""docs/loadtests.md: its commands run against a gateway and fakes, and its tables name what there is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from loadtests.fakes.script import Kind, RewardScript, VllmScript
from loadtests.measures import KEYS
from loadtests.processes import free_port
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.stand import stand
from tests.deploy.prometheus import program

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "loadtests.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    program("prometheus")
    commands = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    (limits,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "limits.toml").write_text(limits)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with stand(VllmScript(tokens=4, tokens_step=2), reward=RewardScript()) as running:
        urls = {
            "http://127.0.0.1:8000": running.gateway.url,
            "http://127.0.0.1:8001": running.rewards[0].server.url,
            "http://127.0.0.1:8100": running.policy.server.url,
        }
        port = str(free_port())
        script = "\n".join(["set -e", *commands]).replace("--rate 5,10,20 --seconds 10", "--rate 5,10,20")
        for written, real in urls.items():
            script = script.replace(written, real)
            script = script.replace(written.removeprefix("http://"), real.removeprefix("http://"))
        script = script.replace("127.0.0.1:8002", running.policy.server.url.removeprefix("http://"))
        script = script.replace("8300", port).replace("--duration 600", "--duration 2 --capacity-seconds 0.5")
        script = script.replace("--picture", f"--interval 1 --port {free_port()} --picture")
        pids = {"gateway": running.gateway.pid, "reward": running.rewards[0].server.pid}
        ready = tmp_path / "runs" / "demo" / "ready.json"
        ready.parent.mkdir(parents=True)
        ready.write_text(json.dumps({"url": running.gateway.url, "pids": pids}))
        script = script.replace("--rate 5,10,20", "--rate 5,10,20 --seconds 1")
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(commands) == 6
    faults = (tmp_path / "runs/faults/chat/report.md").read_text()
    assert "| reset |" in faults or "| cut |" in faults
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    for name in ("chat", "best-of-n", "stream", "sustained"):
        assert (tmp_path / "runs" / "load" / name / "report.html").is_file()
    assert "Every threshold was kept" in (tmp_path / "runs/load/best-of-n/report.md").read_text()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_and_its_flags_are_documented(scenario: Scenario) -> None:
    assert f"| `{scenario.name}` |" in TEXT
    for flag in scenario.flags:
        assert f"`--{flag.name.replace('_', '-')}`" in TEXT


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_fault_is_documented(kind: str) -> None:
    assert f"`{kind}`" in TEXT


@pytest.mark.parametrize("key", KEYS)
def test_every_measure_is_documented(key: str) -> None:
    assert f"`{key}`" in TEXT
