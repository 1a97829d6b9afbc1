"""Flags: TRL's names and habits, checked before anything is loaded."""

from dataclasses import dataclass, fields
from typing import Any

import pytest

from trainers import cem, dpo, ppo, reward, rloo, sft
from trainers.config import RunConfig, TrainingConfig, normalize_flags, parse
from trainers.errors import ConfigError

NEEDED = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
ONLINE = [ppo.Config, rloo.Config, cem.Config]
CONFIGS: list[type[TrainingConfig]] = [sft.Config, reward.Config, dpo.Config, *ONLINE]


@dataclass(frozen=True, kw_only=True)
class Example(TrainingConfig):
    """An algorithm."""

    beta: float = 0.1
    """A number."""


def flags(*more: str) -> Example:
    return parse(Example, [*NEEDED, *more], "example", None)


def test_underscores_and_dashes_are_the_same() -> None:
    assert flags("--learning-rate", "0.5") == flags("--learning_rate", "0.5") == flags("--learning_rate=0.5")


@pytest.mark.parametrize(
    ("written", "value"),
    [(["--bf16"], True), (["--bf16", "True"], True), (["--bf16=false"], False), (["--no_bf16"], False)],
)
def test_switches(written: list[str], value: bool) -> None:
    assert flags(*written, "--seed", "3").bf16 is value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (["--resume_from_checkpoint"], "latest"),
        (["--resume_from_checkpoint", "--seed", "3"], "latest"),
        (["--resume-from-checkpoint", "True"], "latest"),
        (["--resume_from_checkpoint", "runs/checkpoint-3"], "runs/checkpoint-3"),
        ([], None),
    ],
)
def test_resuming_takes_a_path_or_nothing(written: list[str], value: str | None) -> None:
    assert flags(*written).resume_from_checkpoint == value


def test_a_negative_number_is_no_flag() -> None:
    assert flags("--max_steps", "-1").max_steps == -1


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("num_train_epochs", 0.0, "above 0"),
        ("max_steps", 0, "at least 1, or -1"),
        ("max_length", 1, "at least 2"),
        ("warmup_ratio", 1.0, r"in \[0, 1\)"),
        ("adam_beta2", 1.0, r"in \[0, 1\)"),
        ("save_total_limit", 0, "at least 1"),
        ("weight_decay", -0.1, "0 or above"),
        ("output_dir", "", "must name a folder"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any, rule: str) -> None:
    values: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match=f"--{name} .*{rule}" if name != "output_dir" else rule):
        TrainingConfig(**values | {name: value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (dpo.Config, "beta", 0.0),
        (dpo.Config, "label_smoothing", 0.5),
        (reward.Config, "center_rewards_coefficient", -1.0),
        (reward.Config, "normalization_samples", 1),
    ],
)
def test_an_algorithms_own_values_are_checked_too(config: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name}"):
        config(model_name_or_path="m", dataset_name="d", output_dir="o", **{name: value})


@pytest.mark.parametrize("words", [["--learning_rat", "1"], ["--seed", "x"], ["--lr_scheduler_type", "step"]])
def test_what_cannot_be_parsed_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags(*words)
    assert caught.value.code == 2


@pytest.mark.parametrize("config", CONFIGS)
def test_help_explains_every_flag(config: type[RunConfig], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(config, ["--help"], "name", "What it does.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    for field in fields(config):
        assert f"--{field.name}" in text


def test_flags_of_trl_keep_their_names() -> None:
    names = {field.name for field in fields(dpo.Config)}
    of_trl = """
        model_name_or_path dataset_name output_dir learning_rate per_device_train_batch_size
        gradient_accumulation_steps num_train_epochs max_steps max_length beta label_smoothing seed save_steps
        save_total_limit logging_steps eval_steps warmup_ratio warmup_steps lr_scheduler_type weight_decay
        max_grad_norm adam_beta1 adam_beta2 adam_epsilon bf16 use_cpu resume_from_checkpoint
        attn_implementation
    """
    assert set(of_trl.split()) <= names


def test_other_words_are_left_alone() -> None:
    assert normalize_flags(Example, ["--dataset_name", "true", "x=y"]) == ["--dataset_name", "true", "x=y"]


@pytest.mark.parametrize(
    ("config", "values", "reason"),
    [
        (ppo.Config, {"lam": 1.5}, "--lam must be in"),
        (ppo.Config, {"cliprange": 1.0}, "--cliprange must be in"),
        (ppo.Config, {"ptx_coef": 0.0}, "--ptx_coef must be above 0"),
        (ppo.Config, {"value_learning_rate": 0.0}, "--value_learning_rate must be above 0"),
        (ppo.Config, {"temperature": 0.0}, "--temperature must be above 0"),
        (ppo.Config, {"reward_server_url": "http://u"}, "give one"),
        (ppo.Config, {"reward_model_path": None}, "give one"),
        (ppo.Config, {"reward_server_model": "m"}, "goes with --reward_server_url"),
        (ppo.Config, {"num_mini_batches": 5}, "5 does not divide the 64 episodes"),
        (rloo.Config, {"num_generations": 3}, "3 does not divide the 64 episodes"),
        (rloo.Config, {"num_generations": 1}, "of at least 2"),
        (cem.Config, {"top_k": 8}, "below --num_generations"),
        (cem.Config, {"num_mini_batches": 16}, "chosen answers"),
        (ppo.Config, {"missing_eos_penalty": 1.0, "stop_token": "none"}, "no response ends by itself"),
        (ppo.Config, {"missing_eos_penalty": -1.0}, "--missing_eos_penalty must be above 0"),
        (ppo.Config, {"kl_target_nats_per_sequence": 6.0, "kl_coef": 0.0}, "stays 0"),
        (ppo.Config, {"response_length": 1024}, "must leave room"),
    ],
)
def test_settings_of_online_methods_are_checked(config: Any, values: dict[str, Any], reason: str) -> None:
    named = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "reward_model_path": "r"}
    with pytest.raises(ConfigError, match=reason):
        config(**named | values)


def test_flags_of_trls_ppo_keep_their_names() -> None:
    of_trl = """
        reward_model_path num_ppo_epochs num_mini_batches total_episodes response_length stop_token
        temperature missing_eos_penalty whiten_rewards kl_coef kl_estimator cliprange vf_coef
        cliprange_value gamma lam local_rollout_forward_batch_size
    """
    assert set(of_trl.split()) <= {field.name for field in fields(ppo.Config)}
