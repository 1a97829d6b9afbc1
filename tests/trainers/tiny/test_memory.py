"""Memory of a process and everything that it started."""

import subprocess
import sys

import psutil
import pytest

from trainers.tiny.memory import PeakMemory, tree_bytes

HOLD = "held = bytes(range(256)) * {blocks}; print('held', flush=True); input()"


def test_children_count_and_the_peak_stays() -> None:
    alone = tree_bytes(psutil.Process())
    blocks = 400_000  # 98 MiB
    command = [sys.executable, "-I", "-c", HOLD.format(blocks=blocks)]
    with PeakMemory() as memory:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            assert tree_bytes(psutil.Process(child.pid)) > blocks * 256
            with_child = tree_bytes(psutil.Process())
            child.communicate(b"\n")
        assert with_child > alone + blocks * 128
    assert memory.peak > 0


def test_an_earlier_peak_is_kept() -> None:
    with PeakMemory(2**60) as memory:
        pass
    assert memory.peak == 2**60


def test_the_last_moments_are_watched_even_when_it_fails() -> None:
    memory = PeakMemory()
    with pytest.raises(RuntimeError), memory:
        raise RuntimeError
    assert memory.peak > 2**20


def test_a_process_that_is_gone_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        child.communicate(b"\n")
    with pytest.raises(psutil.NoSuchProcess):
        tree_bytes(process)
