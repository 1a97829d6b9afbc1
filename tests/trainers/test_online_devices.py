"""PPO, RLOO and the cross-entropy method in two processes: answers, metrics and weights of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import make_model
from tests.trainers.copied_rollout import CopiedRollout, FakeVllmServer
from tests.trainers.judge_server import judge_server
from tests.trainers.loopback import served
from tests.trainers.test_devices import WAYS, cut_after, launch, same_metrics, same_weights
from trainers import checkpoint
from trainers.__main__ import main
from trainers.folder import METRICS, SAMPLES
from trainers.formats import sha256_of

VARIANTS = {
    "ppo": [
        *("--num_mini_batches", "2", "--num_ppo_epochs", "2", "--entropy_coef", "0.01", "--whiten_rewards"),
        *("--kl_target_nats_per_sequence", "1", "--kl_horizon_episodes", "50", "--missing_eos_penalty", "1"),
    ],
    "rloo": ["--num_generations", "2", "--num_ppo_epochs", "2", "--normalize_advantages"],
    "cem": ["--num_generations", "2", "--num_ppo_epochs", "2"],
}
"""Six episodes in a step: of some batches one process gets none, and of prompts and examples to mix in."""


def words(base: Path, prompts: Path, output: Path, size: int, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(prompts), "--output_dir", str(output)]
    sizes = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", "3"]
    sizes += ["--response_length", "8", "--max_length", "100", "--local_rollout_forward_batch_size", "2"]
    return [
        *named,
        *sizes,
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--learning_rate",
        "1e-3",
        "--use_cpu",
        *more,
    ]


def samples_of(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / SAMPLES).read_text().splitlines()]
    return [{name: line[name] for name in ("step", "prompt", "response", "finish_reason")} for line in lines]


@pytest.fixture
def few(prompts: Path) -> Path:
    """Three held-out prompts."""
    path = prompts.with_name("few.jsonl")
    path.write_text("".join(prompts.read_text().splitlines(keepends=True)[:3]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "way"), [("ppo", "ddp"), ("ppo", "fsdp2"), ("rloo", "ddp"), ("cem", "fsdp2")]
)
def test_two_processes_learn_what_one_does(
    algorithm: str,
    way: str,
    base: Path,
    reward_checkpoint: Path,
    prompts: Path,
    few: Path,
    demonstrations: Path,
    tmp_path: Path,
) -> None:
    alone, shared, cut = tmp_path / "alone", tmp_path / "shared", tmp_path / "cut"
    more = [
        "--reward_model_path",
        str(reward_checkpoint),
        "--eval_dataset_name",
        str(few),
        "--eval_steps",
        "3",
    ]
    more += VARIANTS[algorithm]
    if algorithm == "ppo":
        more += ["--ptx_dataset_name", str(demonstrations), "--ptx_batch_size", "1"]
    assert main([algorithm, *words(base, prompts, alone, 2, *more)]) == 0
    result = launch(way, "-m", "trainers", algorithm, *words(base, prompts, shared, 1, *more))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("saved") == 1
    assert samples_of(shared) == samples_of(alone)
    same_metrics(alone, shared)
    same_weights(alone, shared)
    assert checkpoint.verify(shared)
    if algorithm == "ppo":  # which has more to remember than the others
        cut_after(2, shared, cut)
        continued = words(base, prompts, cut, 1, *more, "--resume_from_checkpoint")
        result = launch(way, "-m", "trainers", algorithm, *continued)
        assert result.returncode == 0, result.stderr
        assert sha256_of(cut / "model.safetensors") == sha256_of(shared / "model.safetensors")
        # Optimizer, value model and KL coefficient too.
        states = [folder / "checkpoint-4" / "training_state.safetensors" for folder in (cut, shared)]
        assert sha256_of(states[0]) == sha256_of(states[1])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_the_adapters_that_one_does(
    way: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    """The reference is the policy without its adapter, and the value model has one too."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    more = ["--reward_model_path", str(reward_checkpoint), "--use_peft", "--lora_r", "4", *VARIANTS["ppo"]]
    assert main(["ppo", *words(base, prompts, alone, 2, *more)]) == 0
    result = launch(way, "-m", "trainers", "ppo", *words(base, prompts, shared, 1, *more))
    assert result.returncode == 0, result.stderr
    assert samples_of(shared) == samples_of(alone)
    same_metrics(alone, shared)
    same_weights(alone, shared)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_models_lie_in_parts_where_that_is_asked_for_and_the_sampler_is_whole(
    way: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = words(base, prompts, tmp_path / "out", 1, "--reward_model_path", str(reward_checkpoint))
    result = launch(way, str(Path(__file__).with_name("online_sharding.py")), *flags)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / "out" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == 4
    for ours, theirs in zip(first, second, strict=True):
        for name in ("policy", "reference", "value_model"):
            if way == "fsdp2":
                assert ours[name] + theirs[name] == pytest.approx(1)
                assert 0.4 < ours[name] < 0.6
            else:
                assert ours[name] == theirs[name] == 1
        for here in (ours, theirs):
            assert here["sampler"] == 1
            assert here["is_as_policy"]
            assert here["is_policy"] is (way == "ddp")
        assert ours["episodes"] == theirs["episodes"]
    assert len({step["sum"] for step in first}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_judge_the_answers_that_one_does(
    way: str, base: Path, reward_checkpoint: Path, pairs: Path, few: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    more = ["--reward_model_path", str(reward_checkpoint), "--eval_prompts", str(few), "--eval_steps", "2"]
    more += ["--load_best_model_at_end", "--logging_steps", "2"]
    assert main(["dpo", *words(base, pairs, alone, 2, *more)]) == 0
    result = launch(way, "-m", "trainers", "dpo", *words(base, pairs, shared, 1, *more))
    assert result.returncode == 0, result.stderr
    assert len(samples_of(shared)) == 2 * 3
    assert samples_of(shared) == samples_of(alone)
    same_metrics(alone, shared)
    same_weights(alone, shared)


@pytest.mark.slow
def test_a_reward_that_does_not_come_to_one_process_ends_both_where_they_can_go_on(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    judged: list[str] = []

    def until_16(text: str) -> float:
        judged.append(text)
        # One for the probe of each process, six for each step; then only for what is asked anew.
        return float("nan") if len(judged) == 17 else len(text)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with judge_server(len) as url:
        flags = words(base, prompts, whole, 1, "--reward_server_url", url, *VARIANTS["rloo"])
        assert launch("ddp", "-m", "trainers", "rloo", *flags).returncode == 0
    with judge_server(until_16) as url:
        flags = words(
            base, prompts, cut, 1, "--reward_server_url", url, *VARIANTS["rloo"], "--resume_from_checkpoint"
        )
        result = launch("ddp", "-m", "trainers", "rloo", *flags)
        assert result.returncode != 0
        assert "no finite number; the last good checkpoint is" in result.stderr
        assert "checkpoint-2; --resume_from_checkpoint continues there" in result.stderr
        result = launch("ddp", "-m", "trainers", "rloo", *flags)
        assert result.returncode == 0, result.stderr
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_one_process_gives_a_vllm_server_its_weights_and_each_asks_for_its_part(
    way: str, base: Path, reward_checkpoint: Path, prompts: Path, tokenizer: Any, tmp_path: Path
) -> None:
    server = FakeVllmServer(CopiedRollout(make_model(seed=5), tokenizer, [1]))
    with served(server.answer) as url:
        more = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", url]
        more += ["--reward_model_path", str(reward_checkpoint), *VARIANTS["cem"]]
        result = launch(way, "-m", "trainers", "cem", *words(base, prompts, tmp_path / "out", 1, *more))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert all(line["rollout_logprob_difference_max"] < 1e-4 for line in lines)
    of_a_step = ["/collective_rpc", "/reset_prefix_cache", "/v1/completions", "/v1/completions"]
    assert [path for path, _ in server.asked] == ["/v1/models"] * 2 + of_a_step * 4
    asked = [len(body["prompt"]) for path, body in server.asked if path == "/v1/completions"]
    assert [sorted(asked[at : at + 2]) for at in range(0, 8, 2)] == [[1, 2]] * 4


def test_an_engine_in_each_process_is_refused(tmp_path: Path) -> None:
    flags = words(tmp_path, tmp_path, tmp_path / "out", 1, "--reward_model_path", "r", "--use_vllm")
    result = subprocess.run(
        [sys.executable, "-m", "trainers", "rloo", "--num_generations", "2", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0"},
        check=False,
    )
    assert result.returncode == 2
    assert "--use_vllm: several processes take their answers from" in result.stderr
