"""REINFORCE with a baseline: RLOO, on the same rollouts as PPO, without a value model.

A step answers each prompt --num_generations times. What is maximised of an answer is its reward less kl_coef
times its log-ratio to the reference, summed over its tokens. Its advantage is that less the mean of the other
answers to the prompt (RLOO, Ahmadian et al. 2024), of all other answers of the step (`--baseline batch`:
REINFORCE, also with one answer to a prompt), or nothing (`none`). The whole answer is one action: one
advantage, one probability ratio, clipped as in PPO where --num_ppo_epochs or --num_mini_batches repeat; the
loss is the mean over answers.

    python -m trainers rloo --model_name_or_path runs/sft --reward_model_path runs/reward
    --dataset_name prompts.jsonl --output_dir runs/rloo
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trainers.config import parse
from trainers.errors import ConfigError
from trainers.online_config import OnlineConfig


@dataclass(frozen=True, kw_only=True)
class Config(OnlineConfig):
    """Settings of RLOO and REINFORCE."""

    num_generations: int = 4
    """Answers to each prompt of a step."""
    num_ppo_epochs: int = 1
    """Passes over the episodes of a step."""
    baseline: Literal["leave_one_out", "batch", "none"] = "leave_one_out"
    """What an answer is compared with: the other answers to its prompt, all others of the step, or 0."""
    normalize_advantages: bool = False
    """Divide the advantages of a step by their standard deviation."""
    cliprange: float = 0.2
    """How far the probability of an answer may move in one step before it is not pushed further."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("cliprange",), lambda value: 0 < value < 1, "in (0, 1)")
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ConfigError("--baseline leave_one_out needs --num_generations of at least 2")
        if self.baseline == "batch" and self.episodes_per_step < 2:
            raise ConfigError("--baseline batch needs at least 2 episodes in a step")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "rloo", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import advantages, losses, online, online_setup
    from trainers.episodes import EpisodeBatch, Episodes, Share
    from trainers.logprobs import sequence_logps, token_logprobs
    from trainers.loop import Loss, Meter
    from trainers.run import start

    with start(config, "rloo") as run:
        setup = online_setup.load(run, config)
        policy = setup.policy

        def learn(episodes: Episodes, step: int, meter: Meter) -> Iterator[list[Share]]:
            objectives_PK = online.objectives(episodes, setup.kl_coef).view(-1, config.num_generations)
            rewards_PK = episodes.of_episodes["rewards"].view(-1, config.num_generations)
            meter.note("zero_std_share", (rewards_PK.amax(1) == rewards_PK.amin(1)).float())
            advantages_E = advantages.less_baseline(objectives_PK, config.baseline).flatten()
            if config.normalize_advantages:
                advantages_E = advantages_E / (advantages_E.std(correction=0) + 1e-8)
            episodes.of_episodes["advantages"] = advantages_E
            episodes.of_episodes["logps"] = episodes.of_tokens["logprobs"].sum(-1)
            yield from online.minibatches(setup, episodes, range(len(episodes)), step)

        def loss_fn(batch: EpisodeBatch) -> Loss:
            known = batch.of_episodes
            logprobs_N = token_logprobs(policy, batch.sequences, temperature=config.temperature)
            logps_B = sequence_logps(logprobs_N, batch.sequences)
            values_B = losses.clipped_policy(logps_B, known["logps"], known["advantages"], config.cliprange)
            log_ratios_N = (logprobs_N - batch.of_tokens["logprobs"]).detach()
            moved_B = (logps_B - known["logps"]).detach().expm1().abs()
            metrics = {
                "policy_loss": values_B,
                "clip_fraction": (moved_B > config.cliprange).float(),
                "approx_kl": 0.5 * log_ratios_N.square(),
            }
            return Loss(values_B, batch.sequences.num_tokens, metrics)

        run.finish(policy, online.train(run, setup, learn, loss_fn))
    return 0
