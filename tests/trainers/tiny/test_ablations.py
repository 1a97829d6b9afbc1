"""The ablations: figures by hand, and all of it once at a size that takes seconds."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.trainers.conftest import make_model, make_tokenizer
from trainers import checkpoint
from trainers.intervals import Mean
from trainers.tiny.ablations import CHANGES, PANELS, PLAIN, Outcome, demonstration_losses, main, markdown

STEPS = 2


@pytest.fixture
def demo(tmp_path: Path, base: Path, reward_checkpoint: Path, demonstrations: Path, prompts: Path) -> Path:
    """What a demo leaves, as far as it is read here."""
    folder = tmp_path / "demo"
    data = folder / "data"
    data.mkdir(parents=True)
    (folder / "sft").symlink_to(base)
    (folder / "reward").symlink_to(reward_checkpoint)
    for name in ("sft_train", "sft_validation"):
        shutil.copy(demonstrations, data / f"{name}.jsonl")
    for name in ("train_prompts", "held_out_prompts"):
        shutil.copy(prompts, data / f"{name}.jsonl")
    return folder


def words(demo: Path, output: Path) -> Sequence[str]:
    size = ["--max_steps", str(STEPS), "--batch_size", "2", "--response_length", "4"]
    return ["--demo", str(demo), "--folder", str(output), *size]


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(
    tmp_path: Path, demonstrations: Path
) -> None:
    model = make_model()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    checkpoint.save(model, make_tokenizer(), tmp_path / "zero", {"algorithm": "test"})
    losses = demonstration_losses(tmp_path / "zero", demonstrations)
    assert losses == pytest.approx([math.log(261)] * 20)


def test_a_row_of_the_table_by_hand() -> None:
    """Of twelve steps the last ten count: entropies 2 to 11, and KLs 0, but for one 1."""
    lines = [{"step": n, "entropy_nats_per_token": n, "kl_nats_per_sequence": n == 11} for n in range(12)]
    lines[-1] |= {"kl_coef": 0.0625, "eval_reward": 0.5}
    table = markdown({PLAIN: Outcome(lines, Mean(0.25, (0.2, 0.3)))})
    assert "| plain | 6.50 | 0.10 | 0.062 | 0.50 | +0.250 [+0.200, +0.300] |" in table


def test_every_panel_compares_with_the_plain_run() -> None:
    for _, names in PANELS.values():
        assert names[0] == PLAIN
        assert len(names) == 3
        assert set(names) <= set(CHANGES)


@pytest.mark.slow
def test_all_of_it_and_again(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(words(demo, output)) == 0
    table = capsys.readouterr().out
    assert (output / "ablations.md").read_text() in table
    assert (output / "ablations.png").read_bytes().startswith(b"\x89PNG")
    assert table.count("\n| ") == 1 + len(CHANGES)
    first = {
        name: json.loads((output / name / "metrics.jsonl").read_text().splitlines()[0]) for name in CHANGES
    }
    assert {line["reward"] for line in first.values()} == {first[PLAIN]["reward"]}  # the same answers

    shutil.rmtree(output / "ptx 1")
    (output / "ablations.md").unlink()
    assert main(words(demo, output)) == 0
    assert capsys.readouterr().out == table


def test_without_a_demo_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path / "none", tmp_path / "out")) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err
