"""The command as a process: ready line, exit codes, signals."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rm_server.__main__ import main
from rm_server.calibrate import main as calibrate_main
from tests.collector import collector
from tests.rm_server.tiny import save_checkpoint, seal, tiny_model

ROOT = Path(__file__).parents[2]


@contextmanager
def process(
    *arguments: str, started: Callable[[int], None] = lambda pid: None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process, and the URL that it says it is ready at; `started` is told its id before."""
    server = subprocess.Popen(
        [sys.executable, "-m", "rm_server", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started(server.pid)
        assert server.stdout is not None
        ready = re.search(
            r"rm_server ready: (http://\S+) \(\w+ version [0-9a-f]{12}\)", server.stdout.readline()
        )
        assert ready
        yield server, ready[1]
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


@pytest.mark.slow
def test_serves_until_terminated(tiny_checkpoint: Path) -> None:
    with process("--model", str(tiny_checkpoint)) as (server, url):
        assert httpx.get(f"{url}/health/ready").status_code == 200
        body = {"messages": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}
        assert len(httpx.post(f"{url}/score", json=body).json()["scores"]) == 2
        server.terminate()
        assert server.wait(timeout=20) == 0


@pytest.mark.slow
def test_a_server_that_leaves_sends_what_it_has_traced(tiny_checkpoint: Path) -> None:
    with collector() as spans:
        traced = ("--model", str(tiny_checkpoint), "--otlp-traces-endpoint", spans.url)
        with process(*traced) as (server, url):
            assert httpx.post(f"{url}/score", json=ASK).status_code == 200
            server.terminate()
            assert server.wait(timeout=20) == 0
    request = spans.one("server score tiny")
    assert request.attributes["bonsai.model.version"]
    assert spans.under(request) == ["tokenize", "judge"]


def test_a_port_in_use_is_exit_code_2(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--model", str(tiny_checkpoint), "--port", str(port), "--threads", "1"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line == f"rm_server: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_wrong_flag_is_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "x", "--dtype", "int8"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_bad_checkpoint_is_exit_code_3(loose_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (loose_checkpoint / "model.safetensors").rename(loose_checkpoint / "pytorch_model.bin")
    capfd.readouterr()  # what saving the fixture printed
    assert main(["--model", str(loose_checkpoint), "--port", "0", "--threads", "1"]) == 3
    [line] = capfd.readouterr().err.splitlines()
    assert "Pickle checkpoints are not supported" in line


def test_a_missing_checkpoint_is_exit_code_3(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "./no/such/folder", "--port", "0", "--threads", "1"]) == 3
    assert capfd.readouterr().err == "rm_server: ./no/such/folder: no such folder\n"


ASK = {"messages": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}


@pytest.mark.slow
def test_sighup_takes_up_a_new_version_under_load_and_refuses_a_bad_one(tmp_path: Path) -> None:
    """No request fails, every score is one of the version that its answer names, and none is of both."""
    folder = tmp_path / "judge"
    versions = [
        seal(save_checkpoint(tmp_path / f"v{k}", alignment={"reward_offset": float(k)})) for k in range(3)
    ]
    shutil.copytree(versions[0], folder)
    seen: dict[str, set[tuple[float, ...]]] = {}
    with process("--model", str(folder)) as (server, url), httpx.Client(base_url=url) as client:

        def ask() -> str:
            answer = client.post("/score", json=ASK)
            assert answer.status_code == 200
            version = str(answer.json()["version"])
            seen.setdefault(version, set()).add(tuple(round(x, 4) for x in answer.json()["scores"]))
            return version

        def reloads(outcome: str) -> bool:
            return f'reloads_total{{model="judge",outcome="{outcome}"}}' in client.get("/metrics").text

        first = ask()
        _put(versions[1], folder)
        server.send_signal(signal.SIGHUP)
        _until(lambda: ask() != first)
        second = ask()
        _put(versions[2], folder)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
        server.send_signal(signal.SIGHUP)
        _until(lambda: bool(ask()) and reloads("refused"))
        assert ask() == second
        assert client.get("/health/ready").status_code == 200
    assert set(seen) == {first, second}
    [[before], [after]] = seen[first], seen[second]
    assert after == pytest.approx([score - 1 for score in before], abs=1e-3)


@pytest.mark.slow
def test_sigterm_makes_it_unready_at_once_and_answers_what_comes_until_then(tiny_checkpoint: Path) -> None:
    with process("--model", str(tiny_checkpoint), "--drain-delay", "1.5") as (server, url):
        with httpx.Client(base_url=url) as client:
            assert client.get("/health/ready").status_code == 200
            server.terminate()
            _until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
            answer = httpx.post(f"{url}/score", json=ASK)
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
        assert server.wait(timeout=20) == 0


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    """Hundreds of answers are asked for, and the signal comes while they are being scored."""
    folder = save_checkpoint(tmp_path / "judge", tiny_model(hidden_size=512, intermediate_size=2048))
    ask = {**ASK, "responses": [str(k % 10) * 60 for k in range(400)]}
    with process("--model", str(folder)) as (server, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/score", json=ask, timeout=30)
        _until(lambda: "bonsai_rm_in_flight_requests 2.0" in httpx.get(f"{url}/metrics").text)
        server.terminate()
        assert server.wait(timeout=30) == 0
        assert len(asked.result().json()["scores"]) == 400


def _put(version: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(version, folder)


@pytest.mark.slow
def test_sighup_while_it_loads_is_heeded_once_it_serves(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its calibration comes by a pipe, so that this test knows when it loads."""
    data, known, pipe = tmp_path / "data.jsonl", tmp_path / "known.json", tmp_path / "pipe"
    data.write_text('{"prompt": "q", "responses": ["a", "b", "cc", "d e"]}\n')
    judge = f"judge={tiny_checkpoint}"
    calibrate = ["--model", judge, "--data", str(data), "--output", str(known), "--threads", "1"]
    assert calibrate_main(calibrate) == 0
    os.mkfifo(pipe)

    def load(send: Callable[[], None] = lambda: None) -> None:
        with pipe.open("w") as reader:  # waits until somebody reads
            send()
            reader.write(known.read_text())

    pids: queue.Queue[int] = queue.Queue()
    arguments = ["--model", judge, "--calibration", f"judge={pipe}"]
    with ThreadPoolExecutor(1) as loading:
        starting = loading.submit(load, lambda: os.kill(pids.get(timeout=60), signal.SIGHUP))
        with process(*arguments, started=pids.put) as (_, url):
            starting.result(timeout=60)
            load()  # it reads again
            _until(lambda: 'outcome="unchanged"' in httpx.get(f"{url}/metrics").text)


def _until(condition: Callable[[], bool]) -> None:
    """Asks again and again, each time over HTTP."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
