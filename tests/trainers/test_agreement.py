"""A sampler with a copy of the policy: what it may differ by, and that forgotten weights are found out."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.conftest import make_model
from tests.trainers.copied_rollout import CopiedRollout, ForgetfulRollout
from trainers import agreement, losses, online, online_setup
from trainers.devices import Devices
from trainers.episodes import Episode, EpisodeBatch, Episodes
from trainers.errors import RolloutError
from trainers.folder import METRICS
from trainers.logprobs import token_logprobs
from trainers.loop import Loss, Meter
from trainers.online_config import OnlineConfig
from trainers.online_setup import Online
from trainers.prompts import Prompt
from trainers.rollout import PolicyRollout, Sample
from trainers.run import start


def config(base: Path, prompts: Path, reward_checkpoint: Path, output: Path, **more: Any) -> OnlineConfig:
    """Three steps of eight episodes, two optimizer steps in each."""
    settings: dict[str, Any] = {
        "max_steps": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
    }
    return OnlineConfig(
        model_name_or_path=str(base),
        dataset_name=str(prompts),
        reward_model_path=str(reward_checkpoint),
        output_dir=str(output),
        use_cpu=True,
        max_length=100,
        response_length=8,
        **settings | more,
    )


def train(config: OnlineConfig, make_rollout: Callable[[Online], PolicyRollout]) -> list[dict[str, float]]:
    """Trains by the likelihood of whatever is sampled; returns the lines of metrics."""
    with start(config, "test") as run:
        setup = online_setup.load(run, config)
        setup.rollout = make_rollout(setup)

        def learn(episodes: Episodes, step: int, meter: Meter) -> Iterator[Sequence[EpisodeBatch]]:
            yield from online.minibatches(setup, episodes, range(len(episodes)), step)

        def loss_fn(batch: EpisodeBatch) -> Loss:
            logprobs_N = token_logprobs(setup.policy, batch.sequences)
            return Loss(losses.sft_nll(logprobs_N), batch.sequences.num_tokens)

        online.train(run, setup, learn, loss_fn)
    return [json.loads(line) for line in (Path(config.output_dir) / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_copy_that_is_kept_up_to_date_agrees(
    temperature: float, base: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    rollouts: list[CopiedRollout] = []

    def copied(setup: Online) -> CopiedRollout:
        rollouts.append(CopiedRollout(setup.policy, setup.tokenizer, [1]))
        return rollouts[0]

    held_out = {"eval_dataset_name": str(prompts), "eval_steps": 1}
    settings = config(base, prompts, reward_checkpoint, tmp_path / "out", temperature=temperature, **held_out)
    lines = train(settings, copied)
    assert len(lines) == 3
    for line in lines:
        assert 0 <= line["rollout_logprob_difference"] <= line["rollout_logprob_difference_max"] < 1e-4
        assert line["eval_rollout_logprob_difference"] < 1e-4
    # Before each of the three steps, and for the last evaluation; both optimizer steps of a step at once.
    assert rollouts[0].num_loads == 4


def test_a_copy_that_is_not_is_found_out_at_the_next_step(
    base: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    settings = config(base, prompts, reward_checkpoint, tmp_path / "out")
    with pytest.raises(RolloutError, match=r"does not have the policy's weights.*checkpoint-1"):
        train(settings, lambda setup: ForgetfulRollout(setup.policy, setup.tokenizer, [1]))
    assert len((tmp_path / "out" / METRICS).read_text().splitlines()) == 1


def test_small_steps_that_are_forgotten_add_up(
    base: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    settings = config(base, prompts, reward_checkpoint, tmp_path / "out", learning_rate=3e-6, max_steps=20)
    with pytest.raises(RolloutError):
        train(settings, lambda setup: ForgetfulRollout(setup.policy, setup.tokenizer, [1]))


def test_another_model_is_found_out_before_anything_is_learned(
    base: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    settings = config(base, prompts, reward_checkpoint, tmp_path / "out")
    with pytest.raises(RolloutError, match="there is no good checkpoint yet"):
        train(settings, lambda setup: CopiedRollout(make_model(seed=1), setup.tokenizer, [1]))


@pytest.mark.parametrize(
    ("said", "is_good"),
    [({}, True), ({"vllm_logprob_bound": 2e-5}, False), ({"bf16": True, "vllm_logprob_bound": 2e-5}, False)],
)
def test_the_bound_can_be_said(said: dict[str, Any], is_good: bool) -> None:
    settings = config(Path("m"), Path("p"), Path("r"), Path("o"), use_vllm=True, **said)
    episodes = episodes_saying([[-1.0, -2.0], [-3.0]])
    logprobs_EL = torch.tensor([[-1.0, -2.0], [-3.0001, 0.0]])
    with nullcontext() if is_good else pytest.raises(RolloutError, match="--vllm_logprob_bound allows 2e-05"):
        online.check_agreement(settings, episodes, logprobs_EL)
    assert ("rollout_difference" in episodes.of_tokens) is is_good


def episodes_saying(logprobs: list[list[float]] | list[None]) -> Episodes:
    samples = [Sample("", [5] * len(said or [0]), "stop", said) for said in logprobs]
    found = [Episode(Prompt([], False, [5], ""), sample) for sample in samples]
    return Episodes(found, 0, Devices(torch.device("cpu")), torch.zeros(len(found)))


def test_what_the_sampler_says_lies_by_episodes() -> None:
    values = agreement.sampled_logprobs(episodes_saying([[-1.0, -2.0], [-3.0]]))
    assert values is not None
    assert values.tolist() == [[-1.0, -2.0], [-3.0, 0.0]]
    assert agreement.sampled_logprobs(episodes_saying([None, None])) is None


@pytest.mark.parametrize(
    ("differences", "bound", "is_good"),
    [
        ([0.0, 2e-4], 1e-4, True),  # the mean counts
        ([0.0, 2.1e-4], 1e-4, False),
        ([float("nan"), 0.0], 1e-4, False),
        ([0.04, 0.05], agreement.BFLOAT16_BOUND, True),
    ],
)
def test_what_is_too_far(differences: list[float], bound: float, is_good: bool) -> None:
    difference_N = torch.tensor(differences, dtype=torch.float64)
    if is_good:
        agreement.check(difference_N, bound)
    else:
        with pytest.raises(RolloutError, match="nats per token off"):
            agreement.check(difference_N, bound)
