"""LoRA in PPO, RLOO and the cross-entropy method: policy and value model with an adapter each, a reference
that is the policy without, and samplers that are given the merged weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.conftest import make_model
from tests.trainers.copied_rollout import CopiedRollout, FakeVllmServer
from tests.trainers.judge_server import judge_server
from tests.trainers.loopback import served
from tests.trainers.test_adapters import LORA, moved, trained
from tests.trainers.test_online import ONLINE, VARIANTS, metrics_of, words
from trainers import adapters, checkpoint, online, online_setup, ppo
from trainers.__main__ import main
from trainers.formats import sha256_of
from trainers.logprobs import token_logprobs
from trainers.models import load_policy
from trainers.online_setup import Online
from trainers.rollout_vllm import weights_of
from trainers.run import Run, start
from trainers.scorers import LocalScorer

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ADAPTER_SIZE = 4 * 2 * (4 * (32 + 32) + 2 * (32 + 48) + (48 + 32))
"""Rank 4: q, k, v, o of 32 x 32, gate and up of 32 x 48, down of 48 x 32, in two layers."""


@contextmanager
def opened(
    base: Path, prompts: Path, output: Path, **settings: Any
) -> Iterator[tuple[Run, Online, ppo.Config]]:
    """All that a PPO run with an adapter starts from."""
    named = {"model_name_or_path": str(base), "dataset_name": str(prompts), "output_dir": str(output)}
    small = {"max_length": 100, "response_length": 8, "gradient_accumulation_steps": 1}
    config = ppo.Config(**named, **small, use_cpu=True, use_peft=True, lora_r=4, **settings)
    with start(config, "ppo") as run:
        yield run, online_setup.load(run, config), config


def layer_of(name: str) -> str:
    return name.split(".lora_")[0].removesuffix(".weight").rpartition(".")[2]


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_run_changes_the_adapter_alone_and_ends_merged_or_with_it(
    algorithm: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    before = [sha256_of(folder / "model.safetensors") for folder in (base, reward_checkpoint)]
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "2", *LORA]
    for name, more in (("merged", []), ("adapter", ["--save_adapter"])):
        assert main([algorithm, *words(base, prompts, tmp_path / name, *flags, *more)]) == 0
        assert checkpoint.verify(tmp_path / name)
    assert [sha256_of(folder / "model.safetensors") for folder in (base, reward_checkpoint)] == before
    old, merged = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert merged.keys() == old.keys()
    assert {layer_of(name) for name in merged if not torch.equal(merged[name], old[name])} == LAYERS
    alone = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in merged.items():
        a, b = (alone.get(f"base_model.model.{name.replace('.weight', f'.lora_{s}.weight')}") for s in "AB")
        expected = old[name] if a is None or b is None else old[name] + 32 / 4 * b @ a
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    assert not (tmp_path / "adapter" / "config.json").exists()


@pytest.mark.parametrize("algorithm", ONLINE)
def test_it_begins_as_a_run_without_an_adapter(
    algorithm: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "2", "--num_ppo_epochs", "1"]
    for name, more in (("whole", ["--learning_rate", "1e-3"]), ("lora", LORA)):
        assert main([algorithm, *words(base, prompts, tmp_path / name, *flags, *more)]) == 0
    (whole, _), (lora, later) = (metrics_of(tmp_path / name) for name in ("whole", "lora"))
    of_training = {"grad_norm", "learning_rate", "seconds", "tokens_per_second"}
    assert {name: lora[name] for name in lora.keys() - of_training} == {
        name: pytest.approx(whole[name], abs=1e-6) for name in whole.keys() - of_training
    }
    assert lora["kl_nats_per_sequence"] == pytest.approx(0, abs=1e-5)
    assert abs(later["kl_nats_per_sequence"]) > 1e-2


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_continued_run_ends_in_the_same_bits(
    algorithm: str, base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "4", "--save_steps", "2", *LORA]
    flags += VARIANTS[algorithm]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([algorithm, *words(base, prompts, whole, *flags)]) == 0
    arguments = words(base, prompts, cut, *flags, "--resume_from_checkpoint")
    assert main([algorithm, *arguments, str(whole / "checkpoint-2")]) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    for file in ("adapter_model.safetensors", "training_state.safetensors"):
        ours, theirs = (sha256_of(folder / "checkpoint-4" / file) for folder in (cut, whole))
        assert ours == theirs
    # One may still change one's mind about what is saved: the same folder, the same run.
    assert main([algorithm, *arguments, "--save_adapter"]) == 0
    last = whole / "checkpoint-4" / "adapter_model.safetensors"
    assert sha256_of(cut / "adapter_model.safetensors") == sha256_of(last)
    assert main([algorithm, *arguments, "--lora_alpha", "8"]) == 2


def test_a_ppo_checkpoint_holds_two_adapters_a_head_and_their_moments(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "2", "--save_steps", "1", *LORA]
    assert main(["ppo", *words(base, prompts, tmp_path / "out", *flags)]) == 0
    folders = [tmp_path / "out" / f"checkpoint-{step}" for step in (1, 2)]
    adapter = load_file(folders[0] / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in adapter.values()) == ADAPTER_SIZE
    first, second = (load_file(folder / "training_state.safetensors") for folder in folders)
    of_value = {name: weight for name, weight in first.items() if name.startswith("memory.value_model.")}
    assert sum(weight.numel() for weight in of_value.values()) == ADAPTER_SIZE + 32
    assert {layer_of(name) for name in of_value} == LAYERS | {"score"}
    assert not any(torch.equal(weight, second[name]) for name, weight in of_value.items())
    moments = [weight.numel() for name, weight in first.items() if "exp_avg" in name]
    assert sum(moments) == 2 * (ADAPTER_SIZE + ADAPTER_SIZE + 32)


def test_the_reference_is_the_policy_without_its_adapter(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    with opened(base, prompts, tmp_path / "out", reward_model_path=str(reward_checkpoint)) as (run, setup, _):
        assert setup.reference is setup.policy
        start_policy = load_policy(setup.parent, setup.tokenizer, setup.attention)
        moved(setup.policy)
        episodes = online.collect(run, setup, setup.prompts[:4], 2, step=0)
        with run.inference():
            (start_EL,) = episodes.each(start_policy, lambda batch: [token_logprobs(start_policy, batch)], 64)
    kl_EL = episodes.of_tokens["kl"]
    assert torch.equal(kl_EL, episodes.of_tokens["logprobs"] - start_EL)
    assert float(kl_EL.abs().max()) > 0.1
    assert len(trained(setup.policy)) == 2 * 14


def shared(model: Any, other: Any) -> set[str]:
    """The frozen weights of a model that lie where another's lie."""
    there = {weight.data_ptr() for weight in other.parameters()}
    return {name for name, weight in model.named_parameters() if weight.data_ptr() in there}


def test_a_value_model_lies_on_the_reward_model_that_it_starts_from(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    with opened(base, prompts, tmp_path / "out", reward_model_path=str(reward_checkpoint)) as (run, setup, _):
        assert isinstance(setup.scorer, LocalScorer)
        asked = [prompt.answered("yes") for prompt in setup.prompts]
        scores = setup.scorer.score(asked)
        value_model, offset = online_setup.load_value_model(run, setup, None)
        assert offset == 0.25
        own = trained(value_model).keys()
        assert {layer_of(name) for name in own} == LAYERS | {"score"}
        assert shared(value_model, setup.scorer.model) == dict(value_model.named_parameters()).keys() - own
        assert not shared(value_model, setup.policy)
        moved(value_model)
        assert torch.equal(setup.scorer.score(asked), scores)


def test_a_value_model_that_starts_as_the_policy_lies_on_it(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    with (
        judge_server(len) as url,
        opened(base, prompts, tmp_path / "out", reward_server_url=url) as (run, setup, _),
    ):
        value_model, _ = online_setup.load_value_model(run, setup, None)
        frozen = dict(value_model.named_parameters()).keys() - trained(value_model).keys()
        assert shared(value_model, setup.policy) == frozen
        assert not bool(value_model.score.weight.any())


def test_what_a_value_model_lies_on_must_stay_the_same(
    base: Path, prompts: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    moved_away, other = tmp_path / "moved", tmp_path / "other"
    moved_away.symlink_to(base)
    checkpoint.save(make_model(seed=1), tokenizer, other, {"algorithm": "test"})
    with judge_server(len) as url:
        flags = ["--max_steps", "2", "--save_steps", "1", *LORA, "--reward_server_url", url]
        arguments = ["ppo", *words(base, prompts, tmp_path / "out", *flags), "--value_model_path"]
        again = ["--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")]
        assert main([*arguments, str(base)]) == 0
        assert main([*arguments, str(moved_away), *again]) == 0
        assert main([*arguments, str(other), *again]) == 2
    assert "changed: value model" in capsys.readouterr().err


# ---- samplers with a copy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True])
def test_a_sampler_in_this_process_is_given_the_merged_weights(tie: bool) -> None:
    policy, plain = (make_model(tie_word_embeddings=tie) for _ in range(2))
    assert adapters.add(policy, adapters_config(), "base")
    before = {name: weight.clone() for name, weight in moved(policy).state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        weights = weights_of(policy)
    assert weights.keys() == weights_of(plain).keys()
    plain.load_state_dict(weights, strict=not tie)
    ids = torch.tensor([[5, 9, 30, 31, 200, 1]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, policy(ids).logits, atol=1e-5, rtol=0)
    after = policy.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def adapters_config() -> Any:
    named = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "reward_model_path": "r"}
    return ppo.Config(**named, use_peft=True, lora_r=2)


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_server_is_given_the_merged_weights_before_each_step(
    algorithm: str, base: Path, prompts: Path, reward_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    server = FakeVllmServer(CopiedRollout(make_model(seed=5), tokenizer, [1]))
    flags = ["--reward_model_path", str(reward_checkpoint), "--max_steps", "3", *LORA]
    with served(server.answer) as url:
        flags += ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", url]
        assert main([algorithm, *words(base, prompts, tmp_path / "out", *flags)]) == 0
    lines = metrics_of(tmp_path / "out")
    assert len(lines) == 3
    assert all(line["rollout_logprob_difference_max"] < 1e-4 for line in lines)
    assert abs(lines[-1]["kl_nats_per_token"]) > 1e-3
