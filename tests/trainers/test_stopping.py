"""Real processes of every algorithm: SIGTERM saves and exits, kill -9 loses nothing, and continued they end
in the bits of a run that nothing stopped. Of several processes, each is told that one was.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.trainers.launched import command
from trainers.__main__ import main
from trainers.folder import METRICS, SAMPLES
from trainers.formats import sha256_of
from trainers.resume import find_checkpoint, step_checkpoints

Process = subprocess.Popen[str]

POLL_S = 0.01
ON_DATA = ["--per_device_train_batch_size", "4", "--max_steps", "90"]
ONLINE = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "24"]
JUDGED = ["--response_length", "8", "--max_length", "100"]
CHOOSING = ["--load_best_model_at_end", "--eval_steps", "6"]
CASES = {
    "sft": ("demonstrations", ON_DATA),
    "sft, the best by reward": ("demonstrations", [*ON_DATA, *CHOOSING, *JUDGED]),
    "reward": ("pairs", ON_DATA),
    "dpo": ("pairs", ON_DATA),
    "ppo": ("prompts", [*ONLINE, *JUDGED]),
    "rloo": ("prompts", [*ONLINE, *JUDGED]),
    "cem": ("prompts", [*ONLINE, *JUDGED]),
}
SAVE_STEPS = 6
KILLED_AT = {name: (2, SAVE_STEPS + 1)[number % 2] for number, name in enumerate(CASES)}
"""Before the first checkpoint, or after it."""


def start(words: Sequence[str]) -> Process:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_step(process: Process, output: Path, step: int) -> None:
    """Returns once metrics.jsonl has the step; fails if the process ends first."""
    metrics = output / METRICS
    while not (metrics.exists() and f'{{"step": {step}, ' in metrics.read_text()):
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate()[1])


def last_step(output: Path) -> int:
    """The step of the last whole line of metrics.jsonl; a kill may have cut the one after it."""
    *_, last = (line for line in (output / METRICS).read_text().splitlines() if line.endswith("}"))
    return int(json.loads(last)["step"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_stopped_and_continued_it_ends_in_the_same_bits(
    name: str, base: Path, reward_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    algorithm, (fixture, flags) = name.partition(",")[0], CASES[name]
    data = str(request.getfixturevalue(fixture))
    words = [algorithm, "--model_name_or_path", str(base), "--dataset_name", data, *flags, "--use_cpu"]
    words += ["--save_steps", str(SAVE_STEPS), "--logging_steps", "1", "--learning_rate", "1e-3"]
    if "--response_length" in flags:
        words += ["--reward_model_path", str(reward_checkpoint), "--eval_dataset_name", data]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, "--output_dir", str(whole)]) == 0

    again = [*words, "--output_dir", str(cut), "--resume_from_checkpoint"]
    alone = [sys.executable, "-m", "trainers", *again]
    with start(alone) as process:
        wait_for_step(process, cut, KILLED_AT[name])
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "manifest.json").exists()

    with start(alone) as process:
        wait_for_step(process, cut, last_step(cut) + 2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    newest = step_checkpoints(cut)[-1]
    assert process.returncode == 143
    assert f"error: stopped; saved {newest}" in errors
    assert find_checkpoint(cut, "latest") == newest
    assert not (cut / "manifest.json").exists()

    assert main(again) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    if (whole / SAMPLES).exists():
        assert (cut / SAMPLES).read_text() == (whole / SAMPLES).read_text()


def launcher_of(launcher: int, _ranks: Sequence[int]) -> int:
    return launcher


def second_of(_launcher: int, ranks: Sequence[int]) -> int:
    return ranks[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "told", "algorithm"),
    [("ddp", launcher_of, "sft"), ("fsdp2", second_of, "sft"), ("ddp", second_of, "ppo")],
)
def test_of_two_processes_the_first_saves_once_and_both_end(
    way: str,
    told: Callable[[int, Sequence[int]], int],
    algorithm: str,
    base: Path,
    reward_checkpoint: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """SIGTERM to the launcher, which hands it on, or to the process that does not write."""
    output = tmp_path / "out"
    data = str(request.getfixturevalue(CASES[algorithm][0]))
    words = ["--model_name_or_path", str(base), "--dataset_name", data, "--use_cpu"]
    words += ["--output_dir", str(output), "--max_steps", "200", "--per_device_train_batch_size", "2"]
    words += ["--save_steps", "0", "--logging_steps", "1"]
    if algorithm == "ppo":
        words += [*JUDGED, "--reward_model_path", str(reward_checkpoint)]
    with start(command(way, "-m", "trainers", algorithm, *words)) as process:
        wait_for_step(process, output, 3)
        ranks = ranks_of(process)
        os.kill(told(process.pid, [rank.pid for rank in ranks]), signal.SIGTERM)
        _, errors = process.communicate()
    assert not any(rank.is_running() for rank in ranks)
    assert process.returncode == 1  # the launcher's own: it does not pass on the 143 of its processes
    (saved,) = step_checkpoints(output)
    assert find_checkpoint(output, "latest") == saved
    assert errors.count(f"error: stopped; saved {saved}") == 1
    assert errors.count(f"error: process 1: stopped; saved {saved}") == 1
    assert last_step(output) == int(saved.name.removeprefix("checkpoint-"))


def ranks_of(process: Process) -> list[psutil.Process]:
    """The processes that a launcher started, in their order."""
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))
