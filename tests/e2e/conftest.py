"""One real stack for the session: a ladder of tiny models, trained and served by the command lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.e2e.commands import Served, gateway_up, trainers
from trainers.tiny.demonstrator import demonstrate
from trainers.tiny.generate import Sizes, generate, prompts, write_jsonl
from trainers.tiny.preferences import Samples, label
from trainers.tiny.skills import SKILLS

SIZES = Sizes(
    documents=2000, demonstrations=800, validation_demonstrations=8, train_prompts=8, held_out_prompts=8
)
SHAPE = ["--hidden_size", 64, "--num_attention_heads", 2, "--num_hidden_layers", 2, "--vocab_size", 600]


@dataclass(frozen=True)
class Ladder:
    """Checkpoint folders."""

    base: Path
    sft: Path
    reward: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is slow."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    """Base, SFT and reward model, a few steps each."""
    folder = tmp_path_factory.mktemp("ladder")
    generate(folder, SIZES, seed=1)
    write_jsonl(folder / "pairs.jsonl", label(people(200), 2, 3.0, seed=1))
    base, sft, reward = folder / "base", folder / "sft", folder / "reward"
    steps = ["--save_steps", 0, "--per_device_train_batch_size", 16]
    trainers(
        *("pretrain", "--dataset_name", folder / "corpus.jsonl", "--output_dir", base, *SHAPE),
        *("--block_length", 64, "--max_length", 512, "--max_steps", 120, *steps),
    )
    trainers(
        *("sft", "--model_name_or_path", base, "--dataset_name", folder / "sft_train.jsonl"),
        *("--output_dir", sft, "--learning_rate", 3e-3, "--max_steps", 50, *steps),
    )
    trainers(
        *("reward", "--model_name_or_path", sft, "--dataset_name", folder / "pairs.jsonl"),
        *("--output_dir", reward, "--learning_rate", 1e-3, "--max_steps", 10, *steps),
    )
    return Ladder(base, sft, reward)


def people(count: int) -> Iterator[Samples]:
    """Prompts with three people's answers each."""
    draw = Random("people")
    for row in prompts("train", count, seed=1):
        answers = [demonstrate(SKILLS[row["skill"]], row["facts"], draw.random(), draw) for _ in range(3)]
        yield {**row, "responses": answers}


@pytest.fixture(scope="session")
def served(ladder: Ladder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The SFT policy with best-of-N by the reward model, in float32."""
    with gateway_up(ladder.sft, ladder.reward, tmp_path_factory.mktemp("served")) as stack:
        yield stack
