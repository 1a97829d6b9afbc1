"""The demo's steps are commands that exist, in an order that works."""

import importlib
from pathlib import Path

import pytest

from trainers.__main__ import ALGORITHMS
from trainers.config import parse
from trainers.tiny.generate import write_jsonl
from trainers.tiny.journal import Step
from trainers.tiny.recipe import (
    HELD_OUT_PAIRS_PER_PROMPT,
    PAIRS_PER_PROMPT,
    StepError,
    read_jsonl,
    steps,
    write_pairs,
)

FOLDER = Path("somewhere/demo")
COMMANDS = [step for step in steps(FOLDER) if step.recipe and step.recipe[0] in ALGORITHMS]


def test_every_input_is_made_before_it_is_read() -> None:
    made: set[str] = set()
    for step in steps(FOLDER):
        assert set(step.after) <= made, step.name
        made.add(step.name)
    assert made == {"data", "pretrain", "sft", "sample", "label", "reward", "dpo", "ppo", "kl dpo", "kl ppo"}


def test_what_a_command_reads_comes_from_the_steps_that_it_names() -> None:
    outputs = {step.name: str(step.output) for step in steps(FOLDER)}
    for step in COMMANDS:
        inputs = {
            name
            for name, output in outputs.items()
            for word in step.recipe
            if name != step.name and (word == output or word.startswith(f"{output}/"))
        }
        assert inputs <= set(step.after), step.name


@pytest.mark.parametrize("step", COMMANDS, ids=lambda step: step.name)
def test_every_command_line_is_accepted(step: Step) -> None:
    name, *flags = step.recipe
    config = importlib.import_module(ALGORITHMS[name][0]).Config
    parsed = parse(config, flags, name, "")
    written = parsed.output if name in ("sample", "kl") else parsed.output_dir
    assert Path(written) == step.output


def test_everything_is_kept_in_the_folder() -> None:
    for step in steps(FOLDER):
        assert FOLDER in step.output.parents


@pytest.mark.slow
def test_a_command_that_fails_carries_its_exit_code(tmp_path: Path) -> None:
    """Pre-training without a corpus: bad data."""
    pretrain = next(step for step in steps(tmp_path) if step.name == "pretrain")
    with pytest.raises(StepError, match="pretrain ended with exit code 3") as caught:
        pretrain.action()
    assert caught.value.exit_code == 3


def test_held_out_pairs_have_a_file_of_their_own(tmp_path: Path) -> None:
    answers = [f"{n}, {n + 1}." for n in range(6)]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{split} {n}"}],
            "skill": "counting",
            "facts": {"kind": "up", "first": n, "last": n + 2},
            "split": split,
            "responses": answers,
        }
        for n in range(1, 4)
        for split in ("train", "held_out")
    ]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    write_pairs(tmp_path / "samples.jsonl", tmp_path / "pairs")
    for split, number in (("train", PAIRS_PER_PROMPT), ("held_out", HELD_OUT_PAIRS_PER_PROMPT)):
        pairs = list(read_jsonl(tmp_path / "pairs" / f"{split}.jsonl"))
        assert len(pairs) == 3 * number
        assert all(pair["prompt"][0]["content"].startswith(split) for pair in pairs)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"a": "é\n"}, [1], "x"]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
