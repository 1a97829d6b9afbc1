"""docs/devices.md: its commands run, those for two machines as two launchers on this one."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from trainers import checkpoint
from trainers.__main__ import SEVERAL_DEVICES

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(command: str, desk: Path, port: str) -> subprocess.Popen[str]:
    """Starts a command of the page, on CPUs, with an address and a port of this machine."""
    here = {"accelerate": "-m accelerate.commands.accelerate_cli", "10.0.0.1": "127.0.0.1", "29500": port}
    words = [part for word in shlex.split(command) for part in here.get(word, word).split(" ")]
    if "--main_process_port" not in words:
        words.insert(words.index("launch") + 1, f"--main_process_port={port}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    more = ["--use_cpu", "--max_steps", "1"]
    return subprocess.Popen(
        [sys.executable, *words, *more], cwd=desk, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_every_command_runs(base: Path, demonstrations: Path, pairs: Path, tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    copytree(base, desk / "base")
    (desk / "demos.jsonl").write_text(demonstrations.read_text())
    (desk / "pairs.jsonl").write_text(pairs.read_text())
    one_machine, two_machines = (block.splitlines() for block in BLOCKS)
    assert (len(one_machine), len(two_machines)) == (2, 2)
    port = free_port()
    for together in [[command] for command in one_machine] + [two_machines]:
        processes = [start(command, desk, port) for command in together]
        said = [process.communicate()[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said
    for name in ("sft", "dpo", "machines"):
        assert checkpoint.verify(desk / "runs" / name)


def test_it_names_what_runs_on_several_devices() -> None:
    *names, last = (f"`{name}`" for name in SEVERAL_DEVICES)
    assert PAGE.split("\n")[2].startswith(f"{', '.join(names)} and {last} run on several devices")
