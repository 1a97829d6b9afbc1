"""An adapter trained by two processes: what one trains, whole, and continued in the same bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.test_devices import TOLERANCE, WAYS, cut_after, launch, same_metrics, same_weights, words
from trainers import checkpoint
from trainers.__main__ import main
from trainers.formats import sha256_of

LORA = ["--use_peft", "--lora_r", "4", "--eval_steps", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", ["reward", "dpo"])
def test_two_processes_train_the_adapter_that_one_does(
    algorithm: str, way: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    alone, shared, cut = tmp_path / "alone", tmp_path / "shared", tmp_path / "cut"
    more = [*LORA, "--eval_dataset_name", str(pairs)]
    assert main([algorithm, *words(base, pairs, alone, 2, *more)]) == 0
    result = launch(way, "-m", "trainers", algorithm, *words(base, pairs, shared, 1, *more))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("parameters are trained") == 1
    same_weights(alone, shared)
    same_metrics(alone, shared)
    assert checkpoint.verify(shared)
    step = "checkpoint-8"
    assert [file.name for file in sorted((shared / step).glob("*.safetensors"))] == [
        "adapter_model.safetensors",
        "training_state.safetensors",
    ]
    ours, theirs = (load_file(folder / step / "adapter_model.safetensors") for folder in (alone, shared))
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], atol=TOLERANCE, rtol=0)
    cut_after(8, shared, cut)
    continued = words(base, pairs, cut, 1, *more, "--resume_from_checkpoint")
    result = launch(way, "-m", "trainers", algorithm, *continued)
    assert result.returncode == 0, result.stderr
    assert sha256_of(cut / "model.safetensors") == sha256_of(shared / "model.safetensors")
