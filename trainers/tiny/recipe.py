"""The demo's steps from nothing to the aligned policy, as data."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainers.tiny.generate import Sizes, generate, write_jsonl
from trainers.tiny.journal import Step
from trainers.tiny.preferences import label

SEED = 0
LABEL_SCALE = 5.0
"""Steepness of the Bradley-Terry labels: people are 92 % sure of a difference of 0.5, 62 % of 0.1."""
PAIRS_PER_PROMPT = 6
"""All that four answers make: flips of one answer's labels even out."""
HELD_OUT_PAIRS_PER_PROMPT = 5
SAMPLES = ("--num_samples", 4, "--temperature", 1.0, "--max_new_tokens", 80, "--seed", SEED)
ROLLOUTS = (
    *("--response_length", 80, "--local_rollout_forward_batch_size", 128),
    *("--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 4),
    *("--num_ppo_epochs", 2, "--num_mini_batches", 2),
)
"""128 episodes a step, and four optimizer steps on them."""
COMMON = ("--bf16", "--save_steps", 0, "--max_length", 256, "--warmup_ratio", 0.05, "--seed", SEED)


class StepError(Exception):
    """A training command ended with an error, which it has explained; carries its exit code."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"{name} ended with exit code {exit_code}")
        self.exit_code = exit_code


def steps(folder: Path) -> list[Step]:
    """The steps in order: data, pretrain, sft, sample, label, reward, dpo, ppo, and how far those two
    went.
    """
    data, samples, pairs = folder / "data", folder / "samples.jsonl", folder / "pairs"
    base, sft, reward, dpo, ppo = (folder / name for name in ("base", "sft", "reward", "dpo", "ppo"))
    pretrain_flags = ("--dataset_name", data / "corpus.jsonl", "--num_train_epochs", 2, *COMMON)
    sft_flags = (
        *("--model_name_or_path", base, "--dataset_name", data / "sft_train.jsonl"),
        *("--eval_dataset_name", data / "sft_validation.jsonl"),
        *("--num_train_epochs", 2, "--learning_rate", 1e-3, "--per_device_train_batch_size", 32, *COMMON),
    )
    reward_flags = (
        *("--model_name_or_path", sft, "--dataset_name", pairs / "train.jsonl"),
        *("--eval_dataset_name", pairs / "held_out.jsonl"),
        *("--learning_rate", 7e-4, "--per_device_train_batch_size", 32, "--adam_beta2", 0.98, *COMMON),
    )
    dpo_flags = (
        *("--model_name_or_path", sft, "--dataset_name", pairs / "train.jsonl", "--beta", 0.1),
        *("--learning_rate", 2e-4, "--num_train_epochs", 0.25, "--per_device_train_batch_size", 32, *COMMON),
    )
    ppo_flags = (
        *("--model_name_or_path", sft, "--reward_model_path", reward),
        *("--dataset_name", data / "train_prompts.jsonl", "--max_steps", 16),
        *("--learning_rate", 2e-4, "--value_learning_rate", 5e-4, *ROLLOUTS, *COMMON),
    )
    sample_flags = ("--model_name_or_path", sft, "--prompts", data / "prompts.jsonl", *SAMPLES)
    sizes = Sizes()
    return [
        Step(
            name="data",
            title="the small world: a corpus, demonstrations, prompts",
            after=[],
            output=data,
            recipe=[str(asdict(sizes)), str(SEED)],
            action=lambda: generate(data, sizes, SEED),
        ),
        _training("pretrain", "a base model from scratch", ["data"], base, pretrain_flags),
        _training("sft", "supervised fine-tuning on demonstrations", ["data", "pretrain"], sft, sft_flags),
        _command(
            "sample", "answers of the SFT model, to be compared", ["data", "sft"], samples, sample_flags
        ),
        Step(
            name="label",
            title="noisy preferences between them",
            after=["sample"],
            output=pairs,
            recipe=[str(LABEL_SCALE), str(PAIRS_PER_PROMPT), str(HELD_OUT_PAIRS_PER_PROMPT), str(SEED)],
            action=lambda: write_pairs(samples, pairs),
        ),
        _training("reward", "a reward model from the preferences", ["sft", "label"], reward, reward_flags),
        _training("dpo", "direct preference optimization", ["sft", "label"], dpo, dpo_flags),
        _training("ppo", "PPO against the reward model", ["data", "sft", "reward"], ppo, ppo_flags),
        *(_distance(policy, folder) for policy in ("dpo", "ppo")),
    ]


def _distance(policy: str, folder: Path) -> Step:
    flags = (
        *("--model_name_or_path", folder / policy, "--ref_model_name_or_path", folder / "sft"),
        *("--prompts", folder / "data/held_out_prompts.jsonl", "--max_new_tokens", 80, "--seed", SEED),
    )
    title = f"how far {policy} has gone from the SFT model"
    return _command("kl", title, ["data", "sft", policy], folder / f"kl-{policy}.json", flags, of=policy)


def write_pairs(samples: Path, folder: Path) -> None:
    """Labels the sampled answers; the pairs of the held-out prompts go into a file of their own."""
    rows = list(read_jsonl(samples))
    held_out = [row for row in rows if row["split"] == "held_out"]
    train = [row for row in rows if row["split"] == "train"]
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", label(train, PAIRS_PER_PROMPT, LABEL_SCALE, SEED))
    write_jsonl(folder / "held_out.jsonl", label(held_out, HELD_OUT_PAIRS_PER_PROMPT, LABEL_SCALE, SEED + 1))


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of a file that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _training(name: str, title: str, after: Sequence[str], output: Path, flags: Sequence[object]) -> Step:
    return _command(name, title, after, output, (*flags, "--output_dir", output, "--overwrite_output_dir"))


def _command(
    name: str, title: str, after: Sequence[str], output: Path, flags: Sequence[object], of: str = ""
) -> Step:
    arguments = [name, *map(str, flags)]
    if output.suffix:  # a file, where trainings have named their folder
        arguments += ["--output", str(output)]

    def action() -> None:
        exit_code = subprocess.run([sys.executable, "-m", "trainers", *arguments], check=False).returncode
        if exit_code:
            raise StepError(name, exit_code)

    return Step(f"{name} {of}".strip(), title, after, output, arguments, action)
