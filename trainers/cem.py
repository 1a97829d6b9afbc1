"""The cross-entropy method: of N answers to each prompt the best k are learned by maximum likelihood.

Rejection-sampling fine-tuning, on the same rollouts as PPO: a step answers each prompt --num_generations
times, keeps the --top_k with the highest reward (less kl_coef times their log-ratio to the reference) and
takes steps on the mean negative log-likelihood of their tokens. The answers are the policy's own of now, not
the reference's, so that step by step the best of them move. Of equal answers the first is taken.

    python -m trainers cem --model_name_or_path runs/sft --reward_model_path runs/reward
    --dataset_name prompts.jsonl --output_dir runs/cem
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainers.config import parse
from trainers.errors import ConfigError
from trainers.online_config import OnlineConfig


@dataclass(frozen=True, kw_only=True)
class Config(OnlineConfig):
    """Settings of the cross-entropy method."""

    num_generations: int = 8
    """Answers to each prompt of a step."""
    num_ppo_epochs: int = 1
    """Passes over the chosen answers of a step."""
    top_k: int = 1
    """How many of them are learned."""
    kl_coef: float = 0.0
    """Weight of the KL to the reference, which is taken off the reward by which the best are chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k < self.num_generations:
            raise ConfigError("--top_k must be at least 1 and below --num_generations")
        if self.prompts_per_step * self.top_k < self.num_mini_batches:
            raise ConfigError("--num_mini_batches must not be above the number of chosen answers of a step")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "cem", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import advantages, losses, online, online_setup
    from trainers.episodes import EpisodeBatch, Episodes, Share
    from trainers.logprobs import token_logprobs
    from trainers.loop import Loss, Meter
    from trainers.run import start

    with start(config, "cem") as run:
        setup = online_setup.load(run, config)
        policy = setup.policy

        def learn(episodes: Episodes, step: int, meter: Meter) -> Iterator[list[Share]]:
            objectives_PK = online.objectives(episodes, setup.kl_coef).view(-1, config.num_generations)
            rows = advantages.best_rows(objectives_PK, config.top_k)
            meter.note("chosen_reward", episodes.scores_E[rows])
            yield from online.minibatches(setup, episodes, rows, step)

        def loss_fn(batch: EpisodeBatch) -> Loss:
            logprobs_N = token_logprobs(policy, batch.sequences, temperature=config.temperature)
            return Loss(losses.sft_nll(logprobs_N), batch.sequences.num_tokens)

        run.finish(policy, online.train(run, setup, learn, loss_fn))
    return 0
