"""`python -m loadtests` from its flags to its file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.__main__ import build_parser, main
from loadtests.bench import Bench
from loadtests.benches import APART, BENCHES
from loadtests.fakes.script import VllmScript
from loadtests.processes import free_port
from loadtests.stand import fake


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    core = min(os.sched_getaffinity(0))
    with fake("vllm", VllmScript(delay_ms=1), core) as running:
        assert os.sched_getaffinity(running.server.pid) == {core}
        yield running.server.url


@pytest.mark.parametrize("scenario", ["chat", "stream", "best-of-n", "burst", "long-prompt"])
def test_a_scenario_is_measured_shown_and_written(
    scenario: str, upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert main([scenario, "--url", upstream, "--rate", "100", "--seconds", "0.1", *out]) == 0
    assert {path.name for path in (tmp_path / scenario).iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
    }
    rows = {row["figure"]: row for row in json.loads((tmp_path / f"{scenario}.json").read_text())}
    assert rows["requests"]["value"] == 10
    assert not any(name.startswith("failed:") for name in rows)
    assert rows["failed"]["value"] == 0
    assert rows["latency p50"]["value"] > 0
    assert rows["requests"]["command"].startswith(f"python -m loadtests {scenario} --url {upstream}")
    said = capsys.readouterr().out
    assert f"{scenario}: The generator was p50" in said
    assert "latency p99" in said


def test_answers_that_are_none_are_counted_as_failures(upstream: str, tmp_path: Path) -> None:
    flags = ["--url", upstream, "--rate", "50", "--seconds", "0.1", "--out", str(tmp_path)]
    assert main(["score", *flags]) == 0
    rows = {row["figure"]: row["value"] for row in json.loads((tmp_path / "score.json").read_text())}
    assert rows["failed: status 404"] == 5
    assert rows["latency p50"] is None


def test_no_server_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["chat", "--url", url, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"loadtests: {url}: no server answers there (no connection)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "chat",
        "chat --url u --rate 0",
        "chat --url u --rate 1,",
        "chat --url u --best-of 1,x",
        "chat --url u --max-in-flight 0",
        "chat --url u --seconds inf",
        "score --url u --responses 0",
        "nothing",
        "overload --runs 0",
        "overload --seconds -1",
        "disconnect --cases 1.5",
        "trainers --methods ppo,grpo",
        "trainers --sizes ,",
    ],
)
def test_flags_that_make_no_sense_exit_with_2(line: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2


@pytest.mark.parametrize("bench", [*BENCHES, *APART], ids=lambda bench: bench.name)
def test_the_command_of_a_benchmark_repeats_its_run(bench: Bench) -> None:
    words = bench.command(bench.defaults()).split()
    assert words[:3] == ["python", "-m", "loadtests"]
    parsed = vars(build_parser().parse_args(words[3:]))
    assert {flag.name: parsed[flag.name] for flag in bench.flags} == bench.defaults()


@pytest.mark.parametrize("bench", [*BENCHES, *APART], ids=lambda bench: bench.name)
def test_every_benchmark_has_its_help(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([bench.name, "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(flag.help in said for flag in bench.flags)
