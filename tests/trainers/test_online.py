"""PPO, RLOO and the cross-entropy method: what they report and leave, and that they continue bit for bit."""

import json
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainers.conftest import make_model, make_tokenizer
from tests.trainers.judge_server import judge_server
from trainers import checkpoint, ppo
from trainers.__main__ import main
from trainers.folder import METRICS, SAMPLES
from trainers.formats import sha256_of
from trainers.online import num_steps, prompts_of_step
from trainers.prompts import Prompt
from trainers.resume import step_checkpoints

ONLINE = ["ppo", "rloo", "cem"]
SMALL = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--response_length", "8"]


def words(base: Path, prompts: Path, output: Path, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(prompts), "--output_dir", str(output)]
    return [*named, *SMALL, "--use_cpu", "--max_length", "100", *more]


def metrics_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / METRICS).read_text().splitlines()]


def numbered(count: int) -> list[Prompt]:
    return [Prompt([], False, [number], "") for number in range(count)]


def test_every_pass_answers_every_prompt_once_in_an_order_of_its_own() -> None:
    steps = [prompts_of_step(numbered(6), 4, seed=1, step=step) for step in range(6)]
    ids = [prompt.ids[0] for step in steps for prompt in step]
    passes = [ids[at : at + 6] for at in range(0, 24, 6)]
    assert all(sorted(a_pass) == list(range(6)) for a_pass in passes)
    assert all(first != second for first, second in pairwise(passes))
    assert len(prompts_of_step(numbered(3), 8, seed=1, step=0)) == 8


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_train_epochs": 2.0}, 3),  # 20 episodes, 8 in a step
        ({"num_train_epochs": 2.0, "num_generations": 4}, 10),  # 80 episodes
        ({"num_train_epochs": 2.0, "total_episodes": 9}, 2),
        ({"total_episodes": 9, "max_steps": 4}, 4),
    ],
)
def test_how_long_it_runs(settings: dict[str, Any], steps: int) -> None:
    named: dict[str, Any] = {
        "model_name_or_path": "m",
        "dataset_name": "d",
        "output_dir": "o",
        "reward_model_path": "r",
    }
    config = ppo.Config(**named, gradient_accumulation_steps=1, **settings)
    assert num_steps(config, num_prompts=10) == steps


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_run_leaves_what_it_promises(
    algorithm: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "2", "--learning_rate", "1e-4"]
    assert main([algorithm, *words(base, prompts, output, *flags, "--eval_dataset_name", str(prompts))]) == 0
    assert checkpoint.verify(output) is True
    assert (output / "curves.png").is_file()
    alignment = checkpoint.read_json(output / "alignment.json")
    assert alignment["algorithm"] == algorithm
    assert alignment["reward_model"] == {
        "path": str(reward_checkpoint),
        "sha256": checkpoint.identity(reward_checkpoint),
    }
    first, last = metrics_of(output)
    # At the first step the policy is the reference.
    assert first["kl_nats_per_sequence"] == pytest.approx(0, abs=1e-4)
    assert first["objective"] == pytest.approx(first["reward"], abs=1e-4)
    assert 0 < first["entropy_nats_per_token"] < torch.tensor(261.0).log().item()
    assert 1 <= first["response_length"] <= 8
    assert last["kl_nats_per_token"] != 0
    assert {"eval_reward", "eval_kl_nats_per_sequence", "eval_eos_share"} <= set(last)
    samples = [json.loads(line) for line in (output / SAMPLES).read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [sample["held_out"] for sample in samples] == [False] * 6 + [True] * 3
    AutoModelForCausalLM.from_pretrained(output)


PPO_TO_THE_FULL = [
    *("--num_mini_batches", "2", "--num_ppo_epochs", "2", "--entropy_coef", "0.01", "--whiten_rewards"),
    *("--kl_target_nats_per_sequence", "1", "--kl_horizon_episodes", "50", "--missing_eos_penalty", "1"),
]
VARIANTS = {
    "ppo": PPO_TO_THE_FULL,
    "rloo": ["--num_ppo_epochs", "2", "--normalize_advantages", "--kl_target_nats_per_sequence", "1"],
    "cem": ["--num_ppo_epochs", "2"],
}


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_continued_run_ends_in_the_same_bits(
    algorithm: str, base: Path, reward_checkpoint: Path, prompts: Path, demonstrations: Path, tmp_path: Path
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--learning_rate", "1e-3", "--max_steps", "4"]
    flags += ["--save_steps", "2", *VARIANTS[algorithm]]
    if algorithm == "ppo":
        flags += ["--ptx_dataset_name", str(demonstrations), "--ptx_batch_size", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([algorithm, *words(base, prompts, whole, *flags)]) == 0
    arguments = words(base, prompts, cut, *flags, "--resume_from_checkpoint", str(whole / "checkpoint-2"))
    assert main([algorithm, *arguments]) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    # Optimizer, value model and KL coefficient too.
    states = [folder / "checkpoint-4" / "training_state.safetensors" for folder in (cut, whole)]
    assert sha256_of(states[0]) == sha256_of(states[1])
    ours, theirs = (without_time(metrics_of(output)[-1]) for output in (cut, whole))
    assert ours == theirs


def without_time(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if "second" not in name}


def test_another_reward_model_is_another_run(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, moved, other = tmp_path / "out", tmp_path / "moved", tmp_path / "other"
    moved.symlink_to(reward_checkpoint)
    copytree(reward_checkpoint, other)
    (other / "manifest.json").unlink()
    flags = words(base, prompts, output, "--max_steps", "2", "--save_steps", "1", "--reward_model_path")
    again = ["--resume_from_checkpoint", str(output / "checkpoint-1")]
    assert main(["rloo", *flags, str(reward_checkpoint)]) == 0
    assert main(["rloo", *flags, str(moved), *again]) == 0
    assert main(["rloo", *flags, str(other), *again]) == 2
    assert "changed: reward model" in capsys.readouterr().err


def test_a_step_that_diverges_half_way_is_not_saved(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--save_steps", "1"]
    arguments = words(base, prompts, tmp_path / "out", *flags)
    assert main(["ppo", *arguments, "--max_steps", "2"]) == 0
    more = ["--num_ppo_epochs", "2", "--learning_rate", "1e30", "--overwrite_output_dir"]
    assert main(["ppo", *arguments, *more]) == 6
    error = capsys.readouterr().err.splitlines()[-1]
    assert "there is no good checkpoint yet; try a lower --learning_rate" in error
    assert step_checkpoints(tmp_path / "out") == []


def test_a_reward_server_that_is_gone_ends_the_run_where_it_can_go_on(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third step's rewards do not come; continued, the run ends in the bits of one that was not cut."""
    judged: list[str] = []

    def until_17(text: str) -> float:
        judged.append(text)
        # One for the probe, eight for each step; then only for what is asked anew.
        return float("nan") if len(judged) == 18 else len(text)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ["--max_steps", "4", "--save_steps", "0", "--learning_rate", "1e-3", "--reward_server_url"]
    with judge_server(len) as url:
        assert main(["rloo", *words(base, prompts, whole, *flags, url)]) == 0
    with judge_server(until_17) as url:
        assert main(["rloo", *words(base, prompts, cut, *flags, url)]) == 3
        error = capsys.readouterr().err.splitlines()[-1]
        assert "no finite number; the last good checkpoint is" in error
        assert "checkpoint-2; --resume_from_checkpoint continues there" in error
        assert main(["rloo", *words(base, prompts, cut, *flags, url, "--resume_from_checkpoint")]) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")


def test_a_reward_server_that_is_not_there_is_said_at_the_start(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(len) as url:
        pass
    flags = ["--reward_server_url", url, "--reward_server_timeout", "0.1"]
    assert main(["ppo", *words(base, prompts, tmp_path / "out", *flags)]) == 3
    assert f"error: {url}: is not reachable" in capsys.readouterr().err


def test_responses_that_nothing_ends_have_one_length(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--stop_token", "none", "--max_steps", "1"]
    assert main(["rloo", *words(base, prompts, tmp_path / "out", *flags)]) == 0
    (line,) = metrics_of(tmp_path / "out")
    assert (line["response_length"], line["eos_share"]) == (8, 0)


def test_a_value_model_of_another_vocabulary_is_refused(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    checkpoint.save(make_model(vocab_size=262), tokenizer, other, {"algorithm": "test"})
    with judge_server(len) as url:
        flags = ["--reward_server_url", url, "--value_model_path"]
        assert main(["ppo", *words(base, prompts, tmp_path / "out", *flags, str(other))]) == 2
        assert "another vocabulary" in capsys.readouterr().err
        more = [*flags, str(base), "--max_steps", "1", "--overwrite_output_dir"]
        assert main(["ppo", *words(base, prompts, tmp_path / "out", *more)]) == 0


def test_prompts_that_leave_no_room_are_dropped_and_counted(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "1", "--max_length"]
    # `<|user|>Say xxx<|end|>\n<|assistant|>` has 8 + n tokens, and 8 more are the response's.
    assert main(["rloo", *words(base, prompts, tmp_path / "a", *flags, "20")]) == 0
    assert "dropped 5 of 10 prompts, which are longer than 12 tokens" in capsys.readouterr().err
    assert main(["rloo", *words(base, prompts, tmp_path / "b", *flags, "15")]) == 3
    assert "no prompt is left" in capsys.readouterr().err
