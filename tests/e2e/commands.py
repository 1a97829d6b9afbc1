"""The project's command lines, run as users run them, and ended for certain."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import psutil

START_LIMIT = 300  # seconds; an engine on two busy cores takes up to a minute
STOP_LIMIT = 60


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running stack: where its three servers listen, and the checkpoints behind them."""

    url: str
    policy_url: str
    reward_url: str
    model: str
    policy: Path
    reward_model: Path


def trainers(*words: object) -> None:
    """`python -m trainers ...`; what it said is shown where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1))}
    command = [sys.executable, "-m", "trainers", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def gateway_up(
    policy: Path, reward_model: Path, folder: Path, *more: str, variables: Mapping[str, str] = {}
) -> Iterator[Served]:
    """`python -m gateway up` in float32, with `more` flags and environment, from ready to ended."""
    gateway, vllm, rewards = free_ports(3)
    flags = {
        "policy": policy,
        "reward-model": reward_model,
        "port": gateway,
        "policy-port": vllm,
        "reward-port": rewards,
        "dtype": "float32",
        "log-dir": folder / "logs",
        "ready-file": folder / "ready.json",
        "start-timeout": START_LIMIT,
    }
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command, env = [sys.executable, "-m", "gateway", "up", *words, *more], {**os.environ, **variables}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            _until_up(process)
            yield Served(
                url=f"http://127.0.0.1:{gateway}",
                policy_url=f"http://127.0.0.1:{vllm}",
                reward_url=f"http://127.0.0.1:{rewards}",
                model=policy.name,
                policy=policy,
                reward_model=reward_model,
            )
        finally:
            end(process)


def _until_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Ctrl-C stops everything"):
            return
    raise AssertionError(f"the stack did not start:\n{''.join(said)}")


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, then SIGKILL for it and whatever it has left behind."""
    family = tree(process.pid)
    process.terminate()
    try:
        process.communicate(timeout=STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in alive(family):
        left.kill()


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything that it started, as far as it still runs."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; zombies do not."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
