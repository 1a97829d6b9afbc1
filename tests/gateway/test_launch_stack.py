"""Children are started in stages, watched, and ended with everything they started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.launch_checks import LaunchError
from gateway.launch_specs import ChildSpec
from gateway.launch_stack import Stack, Status, last_words, stop_signals, tail
from tests.gateway.launch_fakes import DEAF, DYING, SILENT, child, free_port, has_ended, serving


class Stage:
    """A stack under test: its events, what it showed, and an end that always comes."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self.shown: list[list[Status]] = []
        self.stacks: list[Stack] = []

    def start(self, *stages: list[ChildSpec], timeout_s: float = 60.0) -> Stack:
        stack = Stack(stages, self.log_dir, timeout_s)
        self.stacks.append(stack)
        stack.start(self.stop, self.shown.append)
        return stack

    def end(self) -> None:
        for stack in self.stacks:
            stack.stop(self.hurry)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.hurry.set()
    stage.end()


def grandchild(folder: Path, name: str) -> int:
    return int((folder / f"{name}.pid").read_text())


def test_starts_stage_by_stage_and_leaves_nothing_behind(stage: Stage, tmp_path: Path) -> None:
    stack = stage.start(
        [serving("policy", tmp_path), serving("reward", tmp_path)], [serving("gateway", tmp_path)]
    )
    states = [{status.name: status.state for status in statuses} for statuses in stage.shown]
    assert states[-1] == {"policy": "ready", "reward": "ready", "gateway": "ready"}
    for state in states:  # the door opens only behind ready engines
        assert state["gateway"] == "waiting" or (state["policy"], state["reward"]) == ("ready", "ready")
    stack.check()
    pids = [*stack.pids().values(), *(grandchild(tmp_path, name) for name in stack.pids())]
    assert len(pids) == 6
    stack.stop(stage.hurry)
    assert all(has_ended(pid) for pid in pids)


def test_a_child_that_dies_while_starting_is_named_with_code_log_and_reason(
    stage: Stage, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError) as caught:
        stage.start([serving("policy", tmp_path), child("reward", DYING, "3")])
    lines = str(caught.value).splitlines()
    assert lines == [
        f"reward ended with exit code 3; its log is {tmp_path / 'reward.log'}",
        "  ValueError: the rope is too short",
    ]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("code", "becomes"), [(0, 1), (1, 1), (2, 2), (7, 7), (8, 1), (120, 1)])
def test_exit_codes_of_the_contract_pass_through_and_others_become_1(
    stage: Stage, code: int, becomes: int
) -> None:
    with pytest.raises(LaunchError) as caught:
        stage.start([child("policy", DYING, str(code))])
    assert caught.value.exit_code == becomes


def test_a_child_that_dies_later_is_noticed(stage: Stage, tmp_path: Path) -> None:
    stack = stage.start([serving("policy", tmp_path)])
    pid = stack.pids()["policy"]
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)
    with pytest.raises(LaunchError, match="policy ended with signal SIGKILL"):
        stack.check()
    stack.stop(stage.hurry)
    assert has_ended(grandchild(tmp_path, "policy"))


def test_a_child_that_never_gets_ready_is_named_with_its_last_line(stage: Stage, tmp_path: Path) -> None:
    stack = Stack([[child("policy", SILENT, port=free_port())]], tmp_path, 0.1)
    stage.stacks.append(stack)

    def show(statuses: list[Status]) -> None:
        while not tail(tmp_path / "policy.log"):
            stage.hurry.wait(0.01)

    with pytest.raises(LaunchError) as caught:
        stack.start(stage.stop, show)
    assert str(caught.value).splitlines() == [
        f"policy was not ready within 0.1 s; its log is {tmp_path / 'policy.log'}",
        "  still thinking",
    ]
    assert caught.value.exit_code == 1


def test_a_wish_to_stop_ends_the_start(stage: Stage, tmp_path: Path) -> None:
    stage.stop.set()
    stack = Stack([[child("policy", SILENT)], [serving("gateway", tmp_path)]], tmp_path, 60.0)
    stage.stacks.append(stack)
    assert stack.start(stage.stop, stage.shown.append) is False
    assert list(stack.pids()) == ["policy"]


@pytest.mark.parametrize(("grace_s", "hurry"), [(0.2, False), (3600.0, True)])
def test_a_child_deaf_to_sigterm_is_killed_after_its_grace_and_at_once_in_a_hurry(
    stage: Stage, grace_s: float, hurry: bool
) -> None:
    port = free_port()
    stack = stage.start([child("policy", DEAF, str(port), port=port, grace_s=grace_s)])
    pid = stack.pids()["policy"]
    if hurry:
        stage.hurry.set()
    stack.stop(stage.hurry)
    assert has_ended(pid)


def test_a_launcher_killed_hard_leaves_no_process_behind(tmp_path: Path) -> None:
    driver = f"""
import signal, threading
from pathlib import Path
from gateway.launch_stack import Stack
from tests.gateway.launch_fakes import serving
folder = Path({str(tmp_path)!r})
stack = Stack([[serving("policy", folder)], [serving("gateway", folder)]], folder, 60.0)
stack.start(threading.Event(), lambda statuses: None)
print(*stack.pids().values(), flush=True)
signal.pause()
"""
    launcher = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pids = [int(word) for word in launcher.stdout.readline().split()]
    pids += [grandchild(tmp_path, name) for name in ("policy", "gateway")]
    assert len(pids) == 4
    launcher.kill()
    launcher.communicate()
    assert all(has_ended(pid) for pid in pids)


def test_the_first_signal_asks_and_the_second_hurries() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as (stop, hurry):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        assert not hurry.is_set()
        os.kill(os.getpid(), signal.SIGHUP)
        assert hurry.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_the_user_has_set_in_the_environment_wins(stage: Stage, tmp_path: Path) -> None:
    program = "import os, sys; print(os.environ['PATH'], os.environ['BONSAI_TEST']); sys.exit(5)"
    command = (sys.executable, "-I", "-c", program)
    env = {"PATH": "/nowhere", "BONSAI_TEST": "ours"}
    with pytest.raises(LaunchError):
        stage.start([ChildSpec(name="policy", command=command, ready_url="http://127.0.0.1:9/", env=env)])
    assert tail(tmp_path / "policy.log") == [f"{os.environ['PATH']} ours"]


def test_last_words_are_the_errors_or_else_the_end(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("INFO one\n\n\x1b[31mOSError: no such file\x1b[0m\nINFO two\nRuntimeError: see above\n")
    assert last_words(log) == ["OSError: no such file", "RuntimeError: see above"]
    log.write_text("a\nb\rc\n\n")
    assert last_words(log, most=2) == ["b", "c"]
    log.write_text("")
    assert last_words(log) == []
