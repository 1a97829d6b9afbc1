"""The frame of PPO, RLOO and the cross-entropy method: a step is a batch of episodes, and learning from it.

    online = load(run, config)                     # online_setup: policy, reference, prompts, rewards
    train(run, online, learn, loss_fn)             # learn(episodes) yields what each optimizer step sees

Prompts, samples and minibatches of a step are functions of the seed and the step's number alone, so that a
continued run needs no more than weights, optimizer and the KL coefficient to end in the same bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from trainers import adapters, advantages, agreement, answers, folder
from trainers.data import CausalBatch, Idle
from trainers.devices import Devices
from trainers.episodes import Episode, Episodes, Share, ValueBatch
from trainers.errors import StepError
from trainers.logprobs import token_logprobs, token_logprobs_and_entropies
from trainers.loop import Loss, Meter, Movable, Saved, Step, drive, take_step
from trainers.online_config import OnlineConfig
from trainers.online_setup import Online
from trainers.optimizer import make_optimizer
from trainers.prompts import Prompt
from trainers.rollout import Sampling
from trainers.run import Run

HELD_OUT_SEED = 2**32
"""Where a step's number stands in the seed of its samples, for held-out prompts: no step has this one."""
SHOWN = 3
"""Answers of each reported step that samples.jsonl keeps."""


def prompts_of_step(prompts: Sequence[Prompt], num: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of a step (0 is the first): each comes once in every pass, in an order of that pass."""
    chosen: list[Prompt] = []
    for at in range(step * num, (step + 1) * num):
        a_pass, place = divmod(at, len(prompts))
        if place == 0 or not chosen:
            order = np.random.default_rng([seed, a_pass]).permutation(len(prompts))
        chosen.append(prompts[order[place]])
    return chosen


def collect(run: Run, online: Online, prompts: Sequence[Prompt], num_samples: int, step: int) -> Episodes:
    """Answers prompts, scores the answers and evaluates them under policy and reference.

    Of tokens it gives `logprobs`, `entropies`, `kl` (k1: the log-ratio to the reference) and `penalised_kl`
    (by --kl_estimator); of episodes `rewards`, scores less the penalty for what did not end by itself.
    """
    config = online.config
    online.rollout.reseed(
        int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0] >> 1)
    )
    sampling = Sampling(num_samples, config.temperature, config.response_length)
    sampled = answers.sample(run, online.rollout, prompts, sampling)
    found = [
        Episode(prompt, sample)
        for prompt, samples in zip(prompts, sampled, strict=True)
        for sample in samples
    ]
    conversations = [item.prompt.answered(item.sample.text) for item in found]
    scores_E = answers.judge(run, online.scorer, conversations)
    episodes = Episodes(found, online.tokenizer.pad_token_id, run.devices, scores_E)
    rewards_E = episodes.scores_E.clone()
    if config.missing_eos_penalty is not None:
        rewards_E[~episodes.is_ended] -= config.missing_eos_penalty
    size = config.local_rollout_forward_batch_size
    policy = partial(token_logprobs_and_entropies, online.policy, temperature=config.temperature)

    def reference(batch: CausalBatch) -> list[torch.Tensor]:
        return [token_logprobs(online.reference, batch, temperature=config.temperature)]

    with run.inference():
        logprobs_EL, entropies_EL = episodes.each(online.policy, policy, size)
        with online.while_asked():
            (reference_EL,) = episodes.each(online.reference, reference, size)
    check_agreement(config, episodes, logprobs_EL)
    episodes.of_episodes["rewards"] = rewards_E
    episodes.of_tokens |= {
        "logprobs": logprobs_EL,
        "entropies": entropies_EL,
        "kl": advantages.kl_per_token(logprobs_EL, reference_EL, "k1"),
        "penalised_kl": advantages.kl_per_token(logprobs_EL, reference_EL, config.kl_estimator),
    }
    return episodes


def check_agreement(config: OnlineConfig, episodes: Episodes, logprobs_EL: torch.Tensor) -> None:
    """Holds the sampler's log-probabilities, where it says any, against the policy's; keeps the absolute
    differences as `rollout_difference` of tokens. Raises RolloutError where they are too far apart.
    """
    sampled_EL = agreement.sampled_logprobs(episodes)
    if sampled_EL is None:
        return
    usual = agreement.BFLOAT16_BOUND if config.bf16 else agreement.FLOAT32_BOUND
    difference_EL = (sampled_EL - logprobs_EL).abs()
    agreement.check(difference_EL[episodes.mask_EL], config.vllm_logprob_bound or usual)
    episodes.of_tokens["rollout_difference"] = difference_EL


def objectives(episodes: Episodes, kl_coef: float) -> torch.Tensor:
    """What is maximised of each episode: reward - kl_coef * KL of the whole response, (E,)."""
    return episodes.of_episodes["rewards"] - kl_coef * episodes.of_tokens["penalised_kl"].sum(-1)


def describe(episodes: Episodes, kl_coef: float) -> dict[str, torch.Tensor]:
    """What is reported of the episodes of a step: values whose means are."""
    mask_EL, kl_EL = episodes.mask_EL, episodes.of_tokens["kl"]
    described = {
        "reward": episodes.scores_E,
        "objective": objectives(episodes, kl_coef),
        "kl_nats_per_sequence": kl_EL.sum(-1),
        "kl_nats_per_token": kl_EL[mask_EL],
        "entropy_nats_per_token": episodes.of_tokens["entropies"][mask_EL],
        "response_length": episodes.lengths.float(),
        "eos_share": episodes.is_ended.float(),
    }
    if "rollout_difference" in episodes.of_tokens:
        difference_N = episodes.of_tokens["rollout_difference"][mask_EL]
        described["rollout_logprob_difference"] = difference_N
        described["rollout_logprob_difference_max"] = difference_N.amax()[None]
    return described


def show(run: Run, episodes: Episodes, step: int, is_held_out: bool = False) -> None:
    """Adds some of the answers to samples.jsonl."""
    if not run.devices.is_main:
        return
    kl_E = episodes.of_tokens["kl"].sum(-1)
    for row in range(min(SHOWN, len(episodes))):
        episode = episodes.episodes[row]
        line = {
            "step": step,
            "prompt": episode.prompt.content,
            "response": episode.sample.text,
            "finish_reason": episode.sample.finish_reason,
            "reward": float(episodes.scores_E[row]),
            "kl_nats": float(kl_E[row]),
            "held_out": is_held_out,
        }
        folder.append_sample(run.output, line)


Learn = Callable[[Episodes, int, Meter], Iterator[Sequence[Movable | Idle[Movable]]]]
"""What each optimizer step of a step sees: batches for the loss function."""


class State:
    """What a continued run needs besides policy and optimizer: the KL coefficient and the value model."""

    def __init__(self, online: Online, value_model: Any | None, devices: Devices) -> None:
        self.online, self.value_model, self.devices = online, value_model, devices

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Named tensors for the checkpoint; wanted in all processes at once."""
        weights = {} if self.value_model is None else adapters.changing(self.value_model)
        state = {f"value_model.{name}": self.devices.whole(weight) for name, weight in weights.items()}
        return state | {"kl_coef": torch.tensor(self.online.kl_coef, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what a checkpoint saved."""
        self.online.kl_coef = float(state["kl_coef"])
        if self.value_model is not None:
            weights = {
                name: self.devices.cut_like(state[f"value_model.{name}"], own)
                for name, own in adapters.changing(self.value_model).items()
            }
            self.value_model.load_state_dict(weights, strict=False)


def train(
    run: Run,
    online: Online,
    learn: Learn,
    loss_fn: Callable[[Any], Loss],
    value_model: Any | None = None,
    value_lr_scale: float = 1.0,
) -> dict[str, float]:
    """Trains the policy (and the value model) in place; returns the last line of metrics."""
    config, policy = online.config, online.policy
    trained = torch.nn.ModuleList([policy] if value_model is None else [policy, value_model])
    for model in trained:
        run.devices.place(model)
    optimizer = make_optimizer(policy, config, value_model, value_lr_scale)

    def placed_of(batch: Movable | Idle[Movable]) -> Any:
        example = batch.stand_in if isinstance(batch, Idle) else batch
        return value_model if isinstance(example, ValueBatch) else policy

    def take(step: int, rate: float, meter: Meter) -> None:
        prompts = prompts_of_step(online.prompts, config.prompts_per_step, config.seed, step)
        episodes = collect(run, online, prompts, config.num_generations, step)
        report(run, online, episodes, step, meter)
        is_first = True
        for window in learn(episodes, step, meter):
            try:
                take_step(run, trained, optimizer, list(window), loss_fn, rate, meter, placed_of)
            except StepError as error:
                error.is_undone = is_first
                raise
            is_first = False
        online.rollout.update()
        online.kl_coef = next_kl_coef(online, episodes)

    total = num_steps(config, len(online.prompts))

    def steps(start: int) -> Iterator[Step]:
        yield from (partial(take, step) for step in range(start, total))

    saved = Saved(policy, optimizer, State(online, value_model, run.devices))
    evaluate = partial(evaluate_held_out, run, online) if online.held_out else None
    return drive(run, saved, steps, total, len(online.prompts) / config.prompts_per_step, evaluate)


def num_steps(config: OnlineConfig, num_prompts: int) -> int:
    """Steps of a whole run: --max_steps, or as many as --total_episodes or --num_train_epochs make."""
    if config.max_steps > 0:
        return config.max_steps
    if config.total_episodes is not None:
        return math.ceil(config.total_episodes / config.episodes_per_step)
    return math.ceil(config.num_train_epochs * num_prompts / config.prompts_per_step)


def next_kl_coef(online: Online, episodes: Episodes) -> float:
    """The KL coefficient of the next step: the same, or adapted to the KL of this one."""
    config = online.config
    if config.kl_target_nats_per_sequence is None:
        return online.kl_coef
    return advantages.adapt_kl_coef(
        online.kl_coef,
        float(episodes.of_tokens["kl"].sum(-1).double().mean()),
        config.kl_target_nats_per_sequence,
        len(episodes),
        config.kl_horizon_episodes,
    )


def report(run: Run, online: Online, episodes: Episodes, step: int, meter: Meter) -> None:
    """Takes the episodes into the metrics, and some answers into samples.jsonl."""
    for name, values in describe(episodes, online.kl_coef).items():
        meter.note(name, values)
    meter.note("kl_coef", torch.tensor([online.kl_coef], dtype=torch.float64))
    if (step + 1) % online.config.logging_steps == 0:
        show(run, episodes, step + 1)


def evaluate_held_out(run: Run, online: Online, step: int) -> dict[str, float]:
    """One answer to each held-out prompt, always by the same random numbers: means as eval_*; some of the
    answers go into samples.jsonl.
    """
    episodes = collect(run, online, online.held_out, 1, HELD_OUT_SEED)
    show(run, episodes, step, is_held_out=True)
    values = describe(episodes, online.kl_coef)
    return {f"eval_{name}": float(value.double().mean()) for name, value in values.items()}


def minibatches(online: Online, episodes: Episodes, rows: Sequence[int], step: int) -> Iterator[list[Share]]:
    """The batches of each optimizer step: --num_mini_batches in each of --num_ppo_epochs passes. Each process
    gets its part of them.
    """
    config = online.config
    for epoch in range(config.num_ppo_epochs):
        random = np.random.default_rng([config.seed, step, epoch])
        yield from episodes.minibatches(
            rows, config.num_mini_batches, config.per_device_train_batch_size, random
        )
