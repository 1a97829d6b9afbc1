"""`python -m loadtests` from its flags to its file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.processes import cpu_seconds, free_port, server


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["-m", "loadtests.fake_upstream", "--port", str(port), "--delay-ms", "1"]
    core = min(os.sched_getaffinity(0))
    with server(flags, ready_url=url, core=core) as process:
        assert os.sched_getaffinity(process.pid) == {core}
        assert cpu_seconds(process.pid) >= 0
        yield url


@pytest.mark.parametrize("scenario", ["chat", "best-of-n"])
def test_a_scenario_is_measured_shown_and_written(
    scenario: str, upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert main([scenario, "--url", upstream, "--rate", "100", "--seconds", "0.1", *out]) == 0
    rows = {row["figure"]: row for row in json.loads((tmp_path / f"{scenario}.json").read_text())}
    assert rows["requests"]["value"] == 10
    assert not any(name.startswith("failed") for name in rows)
    assert rows["latency p50"]["value"] > 0
    assert rows["requests"]["command"].startswith(f"python -m loadtests {scenario} --url {upstream}")
    assert scenario in capsys.readouterr().out


def test_answers_that_are_none_are_counted_as_failures(upstream: str, tmp_path: Path) -> None:
    assert (
        main(["stream", "--url", upstream, "--rate", "50", "--seconds", "0.1", "--out", str(tmp_path)]) == 0
    )
    rows = {row["figure"]: row["value"] for row in json.loads((tmp_path / "stream.json").read_text())}
    assert rows["failed: stream cut"] == 5
    assert rows["latency p50"] is None


def test_no_server_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["chat", "--url", url, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"loadtests: {url}: no server answers there (ClientConnectorError)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "chat",
        "chat --url u --rate 0",
        "chat --url u --seconds inf",
        "score --url u --responses 0",
        "nothing",
    ],
)
def test_flags_that_make_no_sense_exit_with_2(line: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
