"""What is said to the C library, in a process of its own: the setting is of the whole process."""

import os
import subprocess
import sys

import pytest

from trainers.allocator import CHOICES

FREED_AND_TAKEN = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from trainers.allocator import keep_freed_memory
    print(keep_freed_memory())
def step():
    return len([np.ones(2**20) for _ in range(8)])
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", FREED_AND_TAKEN, mode]
    # numpy asks for huge pages by itself, which are fewer.
    env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switch")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    said, faults = run("kept")
    (usual,) = run("usual")
    assert said == "True"
    assert int(faults) < 100 < int(usual)


@pytest.mark.parametrize("name", CHOICES)
def test_a_users_choice_stands(name: str) -> None:
    assert run("kept", **{name: "131072"})[0] == "False"
