"""PPO: the policy learns from a reward model's judgement of its own answers, held to where it started.

A step answers a batch of prompts (sampled from the plain distribution at --temperature), rewards the answers
and passes over them --num_ppo_epochs times. The reward of a token is -kl_coef times its log-ratio to the
frozen reference; the last token's has the reward model's score on top (Ziegler et al. 2019). Advantages are
GAE's, from a value model of its own weights that starts as the reward model (Stiennon et al. 2020). Losses
are means over the tokens of a minibatch: the clipped policy objective, --vf_coef times the clipped value
error, less --entropy_coef times the entropy, and --ptx_coef times the likelihood of other data (PPO-ptx,
Ouyang et al. 2022, eq. 2).

    python -m trainers ppo --model_name_or_path runs/sft --reward_model_path runs/reward
    --dataset_name prompts.jsonl --output_dir runs/ppo
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainers.config import parse
from trainers.online_config import OnlineConfig


@dataclass(frozen=True, kw_only=True)
class Config(OnlineConfig):
    """Settings of PPO."""

    value_model_path: str | None = None
    """What the value model starts from; by default the reward model, or with --reward_server_url the policy
    with a head of zeros. It must have the policy's vocabulary."""
    value_learning_rate: float | None = None
    """Peak learning rate of the value model; by default the policy's."""
    cliprange: float = 0.2
    """How far the probability of a token may move in one step before it is not pushed further."""
    cliprange_value: float = 0.2
    """How far a value may move in one step, in units of reward."""
    vf_coef: float = 0.1
    """Weight of the value error in the loss."""
    gamma: float = 1.0
    """Discount from token to token."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts the rewards alone, 0 the value model alone."""
    whiten_rewards: bool = False
    """Scale the tokens' rewards of a step to variance 1; their mean stays."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus: the mean entropy of the policy, in nats per token."""
    ptx_dataset_name: str | None = None
    """Data whose likelihood is mixed in, against forgetting: demonstrations, as `sft` reads them."""
    ptx_coef: float = 1.0
    """Weight of their mean negative log-likelihood."""
    ptx_batch_size: int = 8
    """Examples of them in each optimizer step, of all processes together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        finite = float("inf")
        self._check(("cliprange",), lambda value: 0 < value < 1, "in (0, 1)")
        self._check(("cliprange_value", "ptx_coef"), lambda value: 0 < value < finite, "above 0")
        self._check(("vf_coef", "entropy_coef"), lambda value: 0 <= value < finite, "0 or above")
        self._check(("gamma", "lam"), lambda value: 0 <= value <= 1, "in [0, 1]")
        self._check(("ptx_batch_size",), lambda value: value >= 1, "at least 1")
        if self.value_learning_rate is not None:
            self._check(("value_learning_rate",), lambda value: 0 < value < finite, "above 0")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "ppo", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    import torch

    from trainers import advantages, losses, models, online, online_setup
    from trainers.data import Idle
    from trainers.episodes import EpisodeBatch, Episodes, ValueBatch
    from trainers.logprobs import token_logprobs, token_logprobs_and_entropies
    from trainers.loop import Loss, Meter, Movable
    from trainers.ptx import PtxBatch, PtxMix
    from trainers.run import start

    with start(config, "ppo") as run:
        setup = online_setup.load(run, config)
        policy = setup.policy
        value_model, value_offset = online_setup.load_value_model(run, setup, config.value_model_path)
        mix = None
        if config.ptx_dataset_name:
            mix = PtxMix.load(run, setup, config.ptx_dataset_name, config.ptx_coef, config.ptx_batch_size)

        def learn(episodes: Episodes, step: int, meter: Meter) -> Iterator[list[Movable | Idle[Movable]]]:
            mask_EL, of_tokens = episodes.mask_EL, episodes.of_tokens
            with run.inference():
                (values_EL,) = episodes.each(
                    value_model,
                    lambda batch: [models.values(value_model, batch) - value_offset],
                    config.local_rollout_forward_batch_size,
                )
            rewards_EL = advantages.token_rewards(
                episodes.of_episodes["rewards"], of_tokens["penalised_kl"], mask_EL, setup.kl_coef
            )
            if config.whiten_rewards:
                rewards_EL = advantages.whiten(rewards_EL, mask_EL, shift_mean=False)
            advantages_EL, returns_EL = advantages.gae(
                rewards_EL, values_EL, mask_EL, config.gamma, config.lam
            )
            explained = advantages.explained_variance(returns_EL[mask_EL], values_EL[mask_EL])
            meter.note("explained_variance", explained[None])
            of_tokens["values"], of_tokens["returns"] = values_EL, returns_EL
            of_tokens["advantages"] = advantages.whiten(advantages_EL, mask_EL)
            for number, window in enumerate(online.minibatches(setup, episodes, range(len(episodes)), step)):
                yield [
                    *window,
                    *map(ValueBatch.of, window),
                    *(mix.share(step, number, window) if mix else []),
                ]

        def policy_loss(batch: EpisodeBatch) -> Loss:
            old_N, advantages_N = batch.of_tokens["logprobs"], batch.of_tokens["advantages"]
            if config.entropy_coef > 0:
                logprobs_N, entropies_N = token_logprobs_and_entropies(
                    policy, batch.sequences, config.temperature
                )
            else:
                logprobs_N = token_logprobs(policy, batch.sequences, temperature=config.temperature)
                entropies_N = torch.zeros_like(logprobs_N)
            values_N = losses.clipped_policy(logprobs_N, old_N, advantages_N, config.cliprange)
            log_ratios_N = (logprobs_N - old_N).detach()
            metrics = {
                "policy_loss": values_N,
                "clip_fraction": (log_ratios_N.expm1().abs() > config.cliprange).float(),
                "approx_kl": 0.5 * log_ratios_N.square(),
            }
            return Loss(values_N - config.entropy_coef * entropies_N, batch.sequences.num_tokens, metrics)

        def value_loss(batch: ValueBatch) -> Loss:
            old_N, returns_N = batch.of_tokens["values"], batch.of_tokens["returns"]
            found_N = models.values(value_model, batch.sequences) - value_offset
            values_N = losses.clipped_value(found_N, old_N, returns_N, config.cliprange_value)
            moved_N = (found_N - old_N).detach().abs()
            metrics = {
                "value_loss": values_N,
                "value_clip_fraction": (moved_N > config.cliprange_value).float(),
            }
            # Added to the mean over the policy's tokens, which are the same.
            return Loss(config.vf_coef * values_N, 0, metrics, num_units=0)

        def loss_fn(batch: EpisodeBatch | PtxBatch) -> Loss:
            if isinstance(batch, PtxBatch):
                return batch.loss(policy)
            return value_loss(batch) if isinstance(batch, ValueBatch) else policy_loss(batch)

        scale = (config.value_learning_rate or config.learning_rate) / config.learning_rate
        metrics = online.train(run, setup, learn, loss_fn, value_model, scale)
        run.finish(policy, metrics)
    return 0
