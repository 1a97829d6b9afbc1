"""A load test from its command line to its report: thresholds, comparison, interruption."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import main
from loadtests.fakes.script import Fault, RewardScript, VllmScript
from loadtests.processes import free_port
from loadtests.stand import fake


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with fake(
        "vllm", VllmScript(delay_ms=1, tokens=4, interval_ms=1), min(os.sched_getaffinity(0))
    ) as running:
        yield running.server.url


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    with fake("reward", RewardScript(), min(os.sched_getaffinity(0))) as running:
        yield running.server.url


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and report.json."""
    code = main([*words, "--out", str(tmp_path)])
    return code, json.loads((tmp_path / words[0] / "report.json").read_text())


class Page(HTMLParser):
    """What a page loads or runs, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [name for name, _ in attrs if name in {"src", "href"}]


def test_the_three_reports_say_the_same(upstream: str, tmp_path: Path) -> None:
    code, facts = run(tmp_path, "stream", "--url", upstream, "--rate", "50,100", "--seconds", "0.2")
    assert code == 0
    assert [(stage["rate"], stage["figures"]["requests"]) for stage in facts["stages"]] == [
        (50, 10),
        (100, 20),
    ]
    assert facts["interrupted"] is False
    assert facts["planned_requests"] == 30
    for stage in facts["stages"]:
        assert stage["figures"]["tokens_per_answer"] == 4
        assert stage["figures"]["between_chunks_p50_ms"] > 0
        assert stage["figures"]["lag_p99_ms"] >= stage["figures"]["lag_p50_ms"] >= 0
        assert sum(row["requests"] for row in stage["by_second"]) == stage["figures"]["requests"]
    text = (tmp_path / "stream" / "report.md").read_text()
    html = (tmp_path / "stream" / "report.html").read_text()
    for said in (text, html):
        assert "The generator was p50" in said
        assert "latency p99" in said
        assert facts["command"] in said
    page = Page(html)
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == page.tags.count("figure") == 6


def test_thresholds_that_are_missed_are_exit_code_1(upstream: str, tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    load = ["chat", "--url", upstream, "--rate", "50", "--seconds", "0.2", "--thresholds", str(limits)]
    limits.write_text("[at_most]\nerror_share = 0\nlatency_p99_ms = 60000\n[at_least]\nanswered_per_s = 1\n")
    code, facts = run(tmp_path, *load)
    assert code == 0
    assert [row["met"] for row in facts["thresholds"]] == [True, True, True]
    limits.write_text("[at_most]\nlatency_p99_ms = 0.001\n[at_least]\nreward_mean = 0\n")
    code, facts = run(tmp_path, *load)
    assert code == 1
    assert [(row["measure"], row["met"]) for row in facts["thresholds"]] == [
        ("latency_p99_ms", False),
        ("reward_mean", False),
    ]
    assert facts["thresholds"][1]["value"] is None
    assert "2 thresholds missed" in (tmp_path / "chat" / "report.md").read_text()


def test_the_same_requests_go_to_both_servers(upstream: str, tmp_path: Path) -> None:
    script = VllmScript(faults=(Fault(kind="status", status=503),))
    with fake("vllm", script, min(os.sched_getaffinity(0))) as second:
        url = second.server.url
        load = ["--rate", "50", "--seconds", "0.2", "--model", "m", "--compare", url]
        code, facts = run(tmp_path, "chat", "--url", upstream, *load)
    assert code == 0
    first, compared = facts["stages"]
    assert (first["server"], first["url"], first["figures"]["error_share"]) == ("first", upstream, 0)
    assert (compared["server"], compared["url"]) == ("compared", url)
    assert compared["failures"] == {"status 503": 10}
    assert "50/s, compared" in (tmp_path / "chat" / "report.md").read_text()


def test_the_judge_rewards_what_was_answered(upstream: str, judge: str, tmp_path: Path) -> None:
    load = ["--rate", "50", "--seconds", "0.1", "--judge", judge, "--best-of", "1,4"]
    _, facts = run(tmp_path, "best-of-n", "--url", upstream, *load)
    rows = facts["stages"][0]["quality"]
    assert [(row["best_of"], row["method"], row["answers"]) for row in rows] == [(1, "", 3), (4, "", 2)]
    said = "river stone lamp garden "  # what the fake says in 4 tokens; its judge counts characters
    assert [row["judged_reward"] for row in rows] == [pytest.approx(len(said) / 100)] * 2
    assert rows[0]["reward"] is None


def test_what_the_judge_cannot_judge_is_told_and_costs_no_report(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["--rate", "50", "--seconds", "0.1", "--judge", upstream]  # which has no /score
    code, facts = run(tmp_path, "chat", "--url", upstream, *load)
    assert code == 0
    assert facts["stages"][0]["figures"]["judged_reward_mean"] is None
    assert capsys.readouterr().err == "loadtests: the judge did not judge 5 answers\n"


def test_a_reward_server_has_scores_for_rewards(judge: str, tmp_path: Path) -> None:
    _, facts = run(tmp_path, "score", "--url", judge, "--rate", "50", "--seconds", "0.1", "--responses", "2")
    assert facts["stages"][0]["figures"]["reward_mean"] > 0
    assert facts["stages"][0]["figures"]["error_share"] == 0


def test_a_storm_of_cancels(upstream: str, tmp_path: Path) -> None:
    storm = ["--cancel-share", "1", "--cancel-within", "0.000001"]
    _, facts = run(tmp_path, "cancel", "--url", upstream, "--rate", "100", "--seconds", "0.2", *storm)
    figures = facts["stages"][0]["figures"]
    assert (figures["cancelled"], figures["error_share"]) == (20, 0)
    assert figures["left"] is None  # a fake has no metrics


def test_no_more_than_so_many_are_in_flight(tmp_path: Path) -> None:
    with fake("vllm", VllmScript(delay_ms=300), min(os.sched_getaffinity(0))) as slow:
        load = ["--rate", "1000", "--seconds", "0.02", "--max-in-flight", "3"]
        _, facts = run(tmp_path, "chat", "--url", slow.server.url, *load)
    assert facts["stages"][0]["failures"] == {"not sent: too many in flight": 17}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_done_by_an_interruption_is_reported(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with fake("vllm", VllmScript(faults=(Fault(kind="silence"),)), min(os.sched_getaffinity(0))) as silent:
        url = silent.server.url
        command = ["-m", "loadtests", "chat", "--url", url, "--rate", "20", "--seconds", "600"]
        process = subprocess.Popen(
            [sys.executable, *command, "--out", str(tmp_path)], stdout=subprocess.DEVNULL
        )
        while not silent_has_calls(url):
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == code
    facts = json.loads((tmp_path / "chat" / "report.json").read_text())
    assert facts["interrupted"] is True
    assert set(facts["stages"][0]["failures"]) == {"not waited for"}
    assert re.search(r"Interrupted: \d+ of 12000 requests", (tmp_path / "chat" / "report.md").read_text())


def silent_has_calls(url: str) -> bool:
    """Whether a fake was asked anything."""
    script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1] + '/_ctl/state').read().decode())"
    done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    return bool(json.loads(done.stdout)["calls"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no threshold in it"),
        ("x", "cannot be read"),
        ("[at_most]\nlatency = 5", "latency is not measured; there are requests, error_share"),
        ("[max]\nlag_p99_ms = 5", "only the tables"),
        ("at_most = 5", "only the tables"),
        ("[at_most]\nlag_p99_ms = '5'", "must be a number"),
        ("[at_most]\nlag_p99_ms = nan", "must be a number"),
        ("[at_most]\nlag_p99_ms = 5\n[at_least]\nlag_p99_ms = 1", "stands in both tables"),
    ],
)
def test_a_wrong_file_of_thresholds_is_one_line_before_any_load(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text(text)
    assert main(["chat", "--url", "http://127.0.0.1:9", "--thresholds", str(limits)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_server_to_compare_with_is_one_line(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for flag in ("--compare", "--judge"):
        load = ["--rate", "10", "--seconds", "0.1", flag, nobody, "--out", str(tmp_path)]
        assert main(["chat", "--url", upstream, *load]) == 2
        assert f"{nobody}: no server answers there" in capsys.readouterr().err
