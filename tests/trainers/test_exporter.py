"""Runs as Prometheus sees them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from trainers import exporter
from trainers.exporter import RunsCollector, main, newest


def write(folder: Path, *lines: dict[str, object], when: float = 1e9, finished: bool = False) -> Path:
    """A run."""
    folder.mkdir(parents=True)
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(file, (when, when))
    if finished:
        (folder / "manifest.json").write_text("{}")
    return file


def registry(folder: Path, max_runs: int = 50) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(RunsCollector(folder, max_runs))
    return found


def test_the_newest_of_every_figure_is_shown(tmp_path: Path) -> None:
    write(
        tmp_path / "demo" / "dpo",
        {"step": 1, "loss": 0.7, "rewards/margins": 0.1},
        {"step": 2, "loss": 0.5, "rewards/margins": 0.2, "eval_loss": 0.6},
        {"step": 3, "loss": 0.4, "rewards/margins": 0.3, "state": "fine", "whole": True},
        when=1234.5,
        finished=True,
    )
    write(tmp_path / "sft", {"step": 9, "loss": 2})
    seen, run = registry(tmp_path), {"run": "demo/dpo"}
    wanted = {"step": 3, "loss": 0.4, "rewards/margins": 0.3, "eval_loss": 0.6, "state": None, "whole": None}
    for name, number in wanted.items():
        assert seen.get_sample_value("bonsai_training_value", run | {"name": name}) == number
    assert seen.get_sample_value("bonsai_training_updated_timestamp_seconds", run) == 1234.5
    assert seen.get_sample_value("bonsai_training_finished", run) == 1
    assert seen.get_sample_value("bonsai_training_finished", {"run": "sft"}) == 0
    assert seen.get_sample_value("bonsai_training_runs") == 2


def test_a_run_is_read_anew_at_each_look(tmp_path: Path) -> None:
    file, seen = write(tmp_path / "a", {"step": 1}), registry(tmp_path)
    step = {"run": "a", "name": "step"}
    assert seen.get_sample_value("bonsai_training_value", step) == 1
    file.write_text('{"step": 2}\n{"step": 3, "lo')  # a line that is being written
    assert seen.get_sample_value("bonsai_training_value", step) == 2
    file.write_text("")
    assert seen.get_sample_value("bonsai_training_value", step) is None
    file.unlink()
    assert seen.get_sample_value("bonsai_training_runs") == 0


def test_only_the_newest_runs_and_not_too_deep(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / str(number), {"step": number}, when=1000.0 + number)
    write(tmp_path / "a/b/c/d", {"step": 7}, when=1.0)
    write(tmp_path / "a/b/c/d/e", {"step": 7}, when=9e9)
    seen = registry(tmp_path, 2)
    shown = [n for n in range(5) if seen.get_sample_value("bonsai_training_finished", {"run": str(n)}) == 0]
    assert shown == [3, 4]
    assert seen.get_sample_value("bonsai_training_runs") == 6


def test_a_long_file_costs_its_end(tmp_path: Path) -> None:
    lines = [
        {"step": number, "eval_loss": 1.5} if number == 0 else {"step": number} for number in range(20000)
    ]
    file = write(tmp_path / "long", *lines)
    assert file.stat().st_size > 2 * exporter.TAIL_BYTES
    seen = registry(tmp_path)
    assert seen.get_sample_value("bonsai_training_value", {"run": "long", "name": "step"}) == 19999
    assert seen.get_sample_value("bonsai_training_value", {"run": "long", "name": "eval_loss"}) is None


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    assert all(isinstance(number, float) for number in newest(text).values())


def test_numbers_that_are_none_are_left_out() -> None:
    assert newest('{"a": NaN, "b": Infinity, "c": 1}\n[1]\n7\n{"c": -2e-3}') == {"c": -0.002}


def test_it_serves_prometheus_text_until_it_is_told_to_stop(tmp_path: Path) -> None:
    write(tmp_path / 'strange "name"', {"step": 1, 'a"b\n': 2})
    command = [sys.executable, "-m", "trainers.exporter", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = httpx.get(process.stdout.readline().strip(), trust_env=False).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == set(exporter.FAMILIES)
    labels = [sample.labels for sample in families["bonsai_training_value"].samples]
    assert {"run": 'strange "name"', "name": 'a"b\n'} in labels


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([str(tmp_path), "--port", port]) == 2
    assert capsys.readouterr().err == f"error: 127.0.0.1:{port}: Address already in use\n"
