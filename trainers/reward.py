"""A reward model from preference pairs: Bradley-Terry on one score for each conversation.

The score is a linear head without bias on the last token's hidden state of the policy's backbone. One
epoch is right: more overfits (Stiennon et al. 2020). After training the rewards are normalised to mean 0
and standard deviation 1 over answers of the reference policy (Ziegler et al. 2019), by default those of
the training pairs: the gain is folded into the head's weights, and the offset, which a head without bias
cannot hold, is `reward_offset` in alignment.json: normalised reward = raw score - reward_offset.

    python -m trainers reward --model_name_or_path runs/sft --dataset_name pairs.jsonl --output_dir
    runs/reward
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from trainers.config import TrainingConfig, parse


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Settings of reward modelling."""

    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up; small models bear more (5e-4 for 3M parameters)."""
    center_rewards_coefficient: float = 0.0
    """Weight of (chosen + rejected reward)^2, which keeps rewards around 0 during training (0.01 is
    usual).
    """
    normalization_dataset: str | None = None
    """Conversations to normalise over: any of the formats, or what `sample` writes. Default: the
    training pairs.
    """
    normalization_samples: int = 2000
    """At most so many of them are scored, drawn by the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("center_rewards_coefficient",), lambda value: 0 <= value < float("inf"), "0 or above")
        self._check(("normalization_samples",), lambda value: value >= 2, "at least 2")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "reward", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import data, encoding, formats, losses, models, normalization
    from trainers.inputs import load_inputs
    from trainers.loop import Loss, evaluate_loss, train
    from trainers.run import start

    with start(config, "reward") as run:
        inputs = load_inputs(run, config, formats.read_pairs, encoding.tokenize_reward_pairs)
        model = models.load_reward_model(inputs.parent, inputs.tokenizer, inputs.attention, config.seed)
        samples, unseen = normalization.sides(inputs.examples), normalization.sides(inputs.held_out)
        source = "training"
        if config.normalization_dataset:
            samples = normalization.read_samples(run, inputs, config.normalization_dataset)
            source = "normalization_dataset"

        def loss_fn(batch: data.RewardBatch) -> Loss:
            chosen_B, rejected_B = models.rewards(model, batch).chunk(2)
            values_B = losses.bradley_terry(chosen_B, rejected_B, batch.margins_P)
            values_B += config.center_rewards_coefficient * losses.reward_centering(chosen_B, rejected_B)
            metrics = {"accuracy": (chosen_B > rejected_B).float(), "margin": chosen_B - rejected_B}
            return Loss(values_B, batch.num_tokens, metrics)

        pad_token_id = inputs.tokenizer.pad_token_id
        collate = partial(data.collate_reward_pairs, pad_token_id=pad_token_id)
        batches = data.Batches(inputs.examples, collate, config.per_device_train_batch_size, config.seed)
        held_out = data.Batches(inputs.held_out, collate, config.per_device_train_batch_size, seed=None)
        evaluate = partial(evaluate_loss, run, held_out, loss_fn) if inputs.held_out else None
        metrics = train(run, model, batches, loss_fn, evaluate)

        scored = normalization.choose_samples(samples, config.normalization_samples, config.seed)
        raw = normalization.score(run, model, scored, pad_token_id, config.per_device_train_batch_size)
        normalized, raw_stats, offset = normalization.normalize(model, raw)
        calibration = normalization.calibrate(normalized, source) | raw_stats
        if source == "training" and len(unseen) >= normalization.ENOUGH:
            again = normalization.choose_samples(unseen, config.normalization_samples, config.seed)
            raw = normalization.score(run, model, again, pad_token_id, config.per_device_train_batch_size)
            calibration = normalization.calibrate(raw - offset, "held_out") | raw_stats
        run.say(normalization.describe(calibration, metrics))
        run.finish(model, metrics, calibration, offset)
    return 0
