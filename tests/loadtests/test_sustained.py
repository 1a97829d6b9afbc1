"""A sustained load from its command line to its report: of a stack that holds, and of some that do not."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests import capacity, sustained
from loadtests.__main__ import build_parser, main
from loadtests.capacity import Step
from loadtests.errors import LoadTestError
from loadtests.fakes.script import Fault, RewardScript, VllmScript
from loadtests.stand import Stand, stand
from loadtests.sustained import plan_of

SHORT = ["--seconds", "1.5", "--capacity-seconds", "0.3", "--max-tokens", "4"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stand]:
    script = VllmScript(delay_ms=20, tokens=4, tokens_step=1)
    with stand(script, reward=RewardScript()) as running:
        yield running


def ready_file(folder: Path, stack: Stand) -> Path:
    """As `gateway up` writes it."""
    pids = {"policy": stack.policy.server.pid, "gateway": stack.gateway.pid}
    path = folder / "ready.json"
    path.write_text(json.dumps({"url": stack.gateway.url, "pids": pids}))
    return path


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sustained" / "report.json").read_text())
    return found


def test_a_stack_that_holds(stack: Stand, tmp_path: Path) -> None:
    judge = stack.rewards[0].server.url
    words = ["--stack", str(ready_file(tmp_path, stack)), *SHORT, "--judge", judge]
    assert main(["sustained", *words, "--out", str(tmp_path)]) == 0
    found = facts(tmp_path)
    [stage] = found["stages"]
    assert stage["rate"] == pytest.approx(0.7 * found["capacity_per_s"], rel=0.01)
    assert stage["figures"]["requests"] == pytest.approx(1.5 * stage["rate"], abs=1)
    assert stage["figures"]["error_share"] == 0
    assert [(row["server"], row["flat"]) for row in found["memory"]] == [("policy", True), ("gateway", True)]
    assert [row["best_of"] for row in stage["quality"]] == [1, 4, 8]
    assert all(row["judged_reward"] for row in stage["quality"])
    assert all(row["latency_p99_ms"] >= row["latency_p50_ms"] >= 20 for row in stage["quality"])
    text = (tmp_path / "sustained" / "report.md").read_text()
    for said in ("# Sustained load: 1.5 s at 70% of capacity", "Memory is flat", "By minute", "Capacity"):
        assert said in text
    pictures = re.findall(r"!\[.*\]\((\w+\.svg)\)", text)
    assert pictures == ["latency.svg", "memory.svg", "quality.svg"]
    for name in pictures:
        assert (
            (tmp_path / "sustained" / name).read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        )
    html = (tmp_path / "sustained" / "report.html").read_text()
    captions = re.findall("<figcaption>(.*)</figcaption>", html)
    assert captions[:2] == ["Latency by best_of, over time", "Memory over time"]
    assert len(set(captions)) == len(captions)


def test_an_error_is_exit_code_1_unless_a_threshold_of_the_users_allows_it(
    stack: Stand, tmp_path: Path
) -> None:
    words = ["sustained", "--stack", str(ready_file(tmp_path, stack)), *SHORT, "--out", str(tmp_path)]
    words += ["--best-of", "1", "--max-in-flight", "1"]  # each answer takes 20 ms: most are not sent
    assert main(words) == 1
    [row] = facts(tmp_path)["thresholds"]
    assert (row["measure"], row["target"], row["met"]) == ("error_share", "<= 0", False)
    limits = tmp_path / "limits.toml"
    limits.write_text("[at_most]\nerror_share = 1\nlatency_p99_ms = 60000\n")
    assert main([*words, "--thresholds", str(limits)]) == 0
    assert [(row["target"], row["met"]) for row in facts(tmp_path)["thresholds"]] == [
        ("<= 1", True),
        ("<= 60000", True),
    ]


@contextmanager
def leaking() -> Iterator[int]:
    """A process that takes 4 MiB more every 20 ms, until its standard input ends."""
    code = (
        "import select, sys\nheld = []\nprint(flush=True)\n"
        "while not select.select([sys.stdin], [], [], 0.02)[0]: held.append(b'x' * (4 << 20))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as leak:
        assert leak.stdout is not None
        leak.stdout.readline()
        yield leak.pid
        leak.communicate()


def test_a_server_that_leaks_is_exit_code_1(stack: Stand, tmp_path: Path) -> None:
    url = stack.gateway.url
    with leaking() as pid:
        words = ["--url", url, "--pids", f"gateway={stack.gateway.pid},leak={pid}", *SHORT]
        assert main(["sustained", *words, "--best-of", "1", "--out", str(tmp_path)]) == 1
    found = facts(tmp_path)
    assert {row["server"]: row["flat"] for row in found["memory"]} == {"gateway": True, "leak": False}
    assert found["stages"][0]["figures"]["error_share"] == 0
    assert (
        "**Memory is not flat: leak grew by more than 32 MiB"
        in (tmp_path / "sustained" / "report.md").read_text()
    )


def test_the_command_of_a_report_repeats_it() -> None:
    words = ["sustained", "--url", "http://a", "--pids", "x=1,y=2", "--share", "0.5", "--seconds", "9"]
    words += ["--best-of", "1,2", "--seed", "3", "--judge", "http://j", "--max-growth-mib", "7"]
    plan = plan_of(build_parser().parse_args(words))
    assert plan.pids == {"x": 1, "y": 2}
    assert plan.step_s == pytest.approx(0.15)
    again = plan.command().split()[3:]
    assert plan_of(build_parser().parse_args(again)) == plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which stack?"),
        (["--url", "http://a"], "which stack?"),
        (["--stack", "nowhere.json"], "nowhere.json: no ready file"),
    ],
)
def test_a_stack_that_is_not_said_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sustained", *words]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sustained", "--pids", "12"])


def test_capacity_is_the_best_step_without_failures() -> None:
    steps = [Step(4, 10.0, 0), Step(8, 18.0, 0), Step(16, 30.0, 2)]
    assert capacity.best(steps) == 18
    assert capacity.best([]) == 0
    assert [row[0] for row in capacity.table(steps).rows] == ["4", "8", "16"]


async def test_capacity_is_what_a_server_of_known_speed_answers(stack: Stand) -> None:
    # An answer takes at least 20 ms: k clients are answered at most 50 k times a second.
    plan = plan_of(
        build_parser().parse_args(
            ["sustained", "--url", stack.gateway.url, "--pids", "x=1", "--best-of", "1", "--max-tokens", "1"]
        )
    )
    steps = await capacity.measure(plan.load, 0.5, (1, 2))
    assert [step.clients for step in steps] == [1, 2]
    assert 0 < steps[0].answered_per_s <= 52
    assert 0 < steps[1].answered_per_s <= 104
    assert [step.failed for step in steps] == [0, 0]


async def test_a_server_that_answers_nothing_has_no_capacity() -> None:
    with stand(VllmScript(faults=(Fault(kind="status", status=500),)), reward=RewardScript()) as failing:
        plan = plan_of(
            build_parser().parse_args(["sustained", "--url", failing.gateway.url, "--pids", "x=1"])
        )
        with pytest.raises(LoadTestError, match="answered nothing"):
            await capacity.measure(plan.load, 0.1, (1, 2))


def test_help_tells_the_deal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sustained", "--help"])
    assert sustained.__doc__ is not None
    assert sustained.__doc__.splitlines()[0] in capsys.readouterr().out
