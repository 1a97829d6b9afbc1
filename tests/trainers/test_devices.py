"""Two processes do what one does: the same weights, written once, and continued in the same bits."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.launched import WAYS, command
from trainers import checkpoint
from trainers.__main__ import main
from trainers.formats import sha256_of

TOLERANCE = 2e-6
"""How far a float32 weight may be from that of one process, after steps that move weights by 1e-3 and more:
sums are taken in another order, and padded to other lengths."""


def launch(way: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in two processes; the test goes on once both are at their end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.run(command(way, *words), capture_output=True, text=True, env=environment, check=False)


def words(base: Path, data: Path, output: Path, size: int, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
    steps = ["--num_train_epochs", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1"]
    sizes = ["--per_device_train_batch_size", str(size), "--save_steps", "4"]
    # With Adam's usual epsilon a gradient that is next to nothing moves a weight as far as any other does.
    rates = ["--learning_rate", "1e-3", "--adam_epsilon", "1e-5"]
    return [*named, *steps, *sizes, *rates, "--use_cpu", *more]


def same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], atol=TOLERANCE, rtol=0)


def same_metrics(one: Path, other: Path) -> None:
    ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other))
    for line, their_line in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        assert line.keys() == their_line.keys()
        for name in line.keys() - {"seconds", "tokens_per_second"}:
            assert their_line[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5)


def cut_after(step: int, whole: Path, cut: Path) -> Path:
    """A copy of a run as it was when it had just saved that step."""
    cut.mkdir()
    return Path(shutil.copytree(whole / f"checkpoint-{step}", cut / f"checkpoint-{step}"))


@pytest.fixture
def odd_pairs(pairs: Path) -> Path:
    """21 pairs: of the last batch of two, one process gets none."""
    first = pairs.read_text().splitlines()[0]
    pairs.write_text(pairs.read_text() + first.replace("Is 0", "Is 99") + "\n")
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", ["sft", "reward", "dpo"])
def test_two_processes_train_what_one_does(
    algorithm: str, way: str, base: Path, demonstrations: Path, odd_pairs: Path, tmp_path: Path
) -> None:
    data = demonstrations if algorithm == "sft" else odd_pairs
    more = ["--eval_dataset_name", str(data), "--eval_steps", "3"]
    alone, shared, cut = tmp_path / "alone", tmp_path / "shared", tmp_path / "cut"
    assert main([algorithm, *words(base, data, alone, 2, *more)]) == 0
    result = launch(way, "-m", "trainers", algorithm, *words(base, data, shared, 1, *more))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("saved") == 1
    same_weights(alone, shared)
    same_metrics(alone, shared)
    assert checkpoint.verify(shared)
    made = [json.loads((folder / "alignment.json").read_text()) for folder in (alone, shared)]
    assert made[1]["processes"] == 2
    assert made[1]["reward_offset"] == pytest.approx(made[0]["reward_offset"], abs=1e-4)
    if algorithm == "dpo":  # which has more to remember than the others
        cut_after(8, shared, cut)
        continued = words(base, data, cut, 1, *more, "--resume_from_checkpoint")
        result = launch(way, "-m", "trainers", algorithm, *continued)
        assert result.returncode == 0, result.stderr
        assert sha256_of(cut / "model.safetensors") == sha256_of(shared / "model.safetensors")
        assert main([algorithm, *words(base, data, cut, 2, *more, "--resume_from_checkpoint")]) == 2


@pytest.mark.slow
def test_a_process_ends_while_its_threads_still_work() -> None:
    program = str(Path(__file__).with_name("leaving.py"))
    result = launch("ddp", program)
    assert (result.returncode, result.stderr.count("worked")) == (0, 2), result.stderr
    assert launch("ddp", program, "--usually").returncode != 0


def tell(way: str, base: Path, output: Path) -> list[dict[str, object]]:
    result = launch(way, str(Path(__file__).with_name("sharding.py")), str(base), str(output))
    assert result.returncode == 0, result.stderr
    return [json.loads((output / f"{rank}.json").read_text()) for rank in (0, 1)]


def check_agreement(found: Sequence[dict[str, object]]) -> None:
    for process in found:
        assert process["sums"] == [2, 1]
        assert process["any"] == [True, False]
        assert process["gathered"] == [0, 1]
        assert process["from_main"] == 0
        assert process["same"]


@pytest.mark.slow
def test_fsdp2_really_shards(base: Path, tmp_path: Path) -> None:
    found = tell("fsdp2", base, tmp_path)
    check_agreement(found)
    assert all(process["sharded"] for process in found)
    here = [process["here"] for process in found]
    assert sum(map(int, map(str, here))) == found[0]["whole"]
    assert max(map(int, map(str, here))) < 0.6 * int(str(found[0]["whole"]))


@pytest.mark.slow
def test_ddp_keeps_the_model_whole(base: Path, tmp_path: Path) -> None:
    found = tell("ddp", base, tmp_path)
    check_agreement(found)
    assert [process["here"] for process in found] == [0, 0]


@pytest.mark.slow
def test_a_folder_in_use_is_said_by_the_first_process_and_ends_both(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    result = launch("ddp", "-m", "trainers", "sft", *words(base, demonstrations, tmp_path / "out", 1))
    assert result.returncode != 0
    assert f"error: --output_dir {tmp_path / 'out'}: cannot be written to" in result.stderr
