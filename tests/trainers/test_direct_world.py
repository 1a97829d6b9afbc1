"""Every direct method on the small world's preferences, noisy labels included."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.trainers.conftest import make_model, make_tokenizer
from trainers import checkpoint, dpo, sft
from trainers.tiny.demonstrator import demonstrate
from trainers.tiny.generate import demonstrations, prompts, write_jsonl
from trainers.tiny.preferences import Samples, label
from trainers.tiny.skills import SKILLS
from trainers.tiny.world import Split

KNOBS = {"ipo": ["--beta", "1"], "slic_hf": ["--sft_coef", "0.1"]}
"""Where defaults do not suit tokens of one byte, of which an answer has a hundred."""


def answered(split: Split, count: int) -> Iterator[Samples]:
    """Prompts with four answers each, by people of every level."""
    draw = Random(f"answers {split}")
    for row in prompts(split, count, 0):
        skill = SKILLS[row["skill"]]
        answers = [demonstrate(skill, row["facts"], level / 3, draw) for level in range(4)]
        yield {**row, "responses": answers}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and a model of 30,000 parameters that has read demonstrations."""
    folder = tmp_path_factory.mktemp("world")
    model = make_model(context=512)
    checkpoint.save(model, make_tokenizer(), folder / "base", {"algorithm": "test"})
    write_jsonl(folder / "demos.jsonl", demonstrations("train", 600, 0))
    write_jsonl(folder / "train.jsonl", label(answered("train", 400), 2, 5.0, 0))
    write_jsonl(folder / "held_out.jsonl", label(answered("held_out", 150), 2, 5.0, 1))
    flags = ["--learning_rate", "5e-3", "--num_train_epochs", "2", "--per_device_train_batch_size", "16"]
    train(sft, folder, folder / "base", folder / "sft", "demos", *flags)
    return folder


def train(algorithm: Any, world: Path, parent: Path, output: Path, data: str, *more: str) -> dict[str, float]:
    words = ["--model_name_or_path", str(parent), "--dataset_name", str(world / f"{data}.jsonl")]
    words += ["--output_dir", str(output), "--use_cpu", "--save_steps", "0", *more]
    assert algorithm.main(words) == 0
    metrics: dict[str, float] = json.loads((output / "alignment.json").read_text())["metrics"]
    return metrics


def prefer(world: Path, loss_type: str, *more: str) -> dict[str, float]:
    flags = ["--loss_type", loss_type, "--per_device_train_batch_size", "16", *more]
    flags += ["--eval_dataset_name", str(world / "held_out.jsonl")]
    flags += KNOBS.get(loss_type, [])
    output = world / "".join([loss_type, *more])
    return train(dpo, world, world / "sft", output, "train", *flags)


def gap(metrics: dict[str, float]) -> float:
    """Nats between the answers that people chose and those that they rejected."""
    return metrics["eval_logps/chosen"] - metrics["eval_logps/rejected"]


@pytest.fixture(scope="module")
def before(world: Path) -> float:
    """The gap of the policy that all start from."""
    return gap(prefer(world, "sigmoid", "--max_steps", "1", "--learning_rate", "1e-12"))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", dpo.KNOBS)
def test_held_out_preferences_come_further_apart(loss_type: str, world: Path, before: float) -> None:
    after = gap(prefer(world, loss_type, "--learning_rate", "1e-3"))
    assert after > before + 0.5
