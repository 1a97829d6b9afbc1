"""What a launcher may ask for, and what is refused in one line."""

import os
import subprocess
import sys

import pytest

from trainers.config import RunConfig
from trainers.errors import ConfigError
from trainers.launcher import check_wishes

FSDP = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_MIXED_PRECISION": "no"},
        FSDP | {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"},
        {"ACCELERATE_USE_DEEPSPEED": "false"},
    ],
)
def test_what_is_supported_is_taken(environment: dict[str, str]) -> None:
    check_wishes(RunConfig(output_dir="x"), environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
        (FSDP | {"FSDP_VERSION": "1"}, "launch with --use_fsdp --fsdp_version 2"),
        (FSDP, "only version 2"),
        (FSDP | {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "offloaded to the CPU"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give --bf16 to the trainer"),
    ],
)
def test_what_is_not_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_wishes(RunConfig(output_dir="x"), environment)


def test_bfloat16_may_be_said_twice() -> None:
    check_wishes(RunConfig(output_dir="x", bf16=True), {"ACCELERATE_MIXED_PRECISION": "bf16"})
    with pytest.raises(ConfigError, match="asks for fp16"):
        check_wishes(RunConfig(output_dir="x", bf16=True), {"ACCELERATE_MIXED_PRECISION": "fp16"})


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_an_algorithm_of_one_process_is_refused_once(rank: int, lines: int) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": str(rank)}
    command = [sys.executable, "-m", "trainers", "sample", "--output_dir", "x"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2
    said = "error: sample runs in one process: start it with `python -m trainers sample`"
    assert result.stderr.count(said) == lines
    assert len(result.stderr.splitlines()) == lines
