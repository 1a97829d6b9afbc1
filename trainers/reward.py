"""A reward model from preferences: one score for each conversation.

    --loss_type bradley_terry    pairs: -log sigmoid(r_w - r_l - margin) (Ouyang et al. 2022)
                choice           the best of several answers: -log softmax(r)[best] (Ziegler et al. 2019)
                binary           each answer of a pair by itself, labelled GOOD or BAD: for preference-model
                                 pre-training on ranked data, before the pairs that count (Askell et al. 2021)

The score is a linear head without bias on the last token's hidden state of the policy's backbone. One
epoch is right: more overfits (Stiennon et al. 2020). After training the rewards are normalised to mean 0
and standard deviation 1 over answers of the reference policy (Ziegler et al. 2019), by default those of
the training pairs: the gain is folded into the head's weights, and the offset, which a head without bias
cannot hold, is `reward_offset` in alignment.json: normalised reward = raw score - reward_offset.
accuracy.json says on which held-out preferences the model is right. --num_members K trains an ensemble.

    python -m trainers reward --model_name_or_path runs/sft --dataset_name pairs.jsonl --output_dir
    runs/reward
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from trainers.adapter_config import AdapterConfig
from trainers.config import LATEST, parse
from trainers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config(AdapterConfig):
    """Settings of reward modelling."""

    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up; small models bear more (5e-4 for 3M parameters)."""
    loss_type: Literal["bradley_terry", "choice", "binary"] = "bradley_terry"
    """What the data are: pairs, choices of the best among several answers (pairs among them), or pairs
    that are read as labelled answers.
    """
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
    metric_for_best_model: Literal["loss", "accuracy"] = "loss"
    """What makes an evaluation the best one: the lowest loss, or the highest accuracy."""
    num_members: int = 1
    """Above 1 an ensemble: so many models, of seeds --seed, --seed + 1, ..., in the folders member-1,
    member-2, ... of the output folder.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("center_rewards_coefficient",), lambda value: 0 <= value < float("inf"), "0 or above")
        self._check(("normalization_samples",), lambda value: value >= 2, "at least 2")
        self._check(("num_members",), lambda value: value >= 1, "at least 1")
        if self.num_members > 1 and self.resume_from_checkpoint not in (None, LATEST):
            raise ConfigError("--resume_from_checkpoint takes no path where there are several members")
        if self.num_members > 1 and self.save_adapter:
            raise ConfigError("--save_adapter goes with one model: members are served merged")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "reward", __doc__)
    if config.num_members == 1:
        train_reward_model(config)
        return 0
    from trainers.ensemble import member_folder, train_members

    members = [
        replace(
            config,
            output_dir=member_folder(config.output_dir, number),
            seed=config.seed + number - 1,
            num_members=1,
        )
        for number in range(1, config.num_members + 1)
    ]
    train_members(config.output_dir, members, train_reward_model)
    return 0


def train_reward_model(config: Config) -> None:
    """Trains one reward model into the output folder."""
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import accuracy, adapters, data, models, normalization, preferences
    from trainers.inputs import load_inputs
    from trainers.loop import evaluate_loss, train
    from trainers.run import start

    form = preferences.FORMS[config.loss_type]
    with start(config, "reward") as run:
        inputs = load_inputs(run, config, form.read, form.tokenize)
        model = models.load_reward_model(inputs.parent, inputs.tokenizer, inputs.attention, config.seed)
        if config.use_peft:
            run.say(adapters.add(model, config, inputs.parent.name))
        samples, unseen = normalization.candidates(inputs.examples), normalization.candidates(inputs.held_out)
        source = "training"
        if config.normalization_dataset:
            samples = normalization.read_samples(run, inputs, config.normalization_dataset)
            source = "normalization_dataset"

        pad_token_id, size = inputs.tokenizer.pad_token_id, config.per_device_train_batch_size
        loss_fn = partial(form.loss, model, centering=config.center_rewards_coefficient)
        collate = partial(form.collate, pad_token_id=pad_token_id)
        batches = data.Batches(inputs.examples, collate, size, config.seed, run.devices.part)
        held_out = data.Batches(inputs.held_out, collate, size, None, run.devices.part)
        evaluate = (lambda _: evaluate_loss(run, model, held_out, loss_fn)) if inputs.held_out else None
        metrics = train(run, model, batches, loss_fn, evaluate)
        if inputs.held_out:
            accuracy.report(run, accuracy.judge(run, model, inputs.held_out, pad_token_id, size))

        scored = normalization.choose_samples(samples, config.normalization_samples, config.seed)
        raw = normalization.score(run, model, scored, pad_token_id, size)
        normalized, raw_stats, offset = normalization.normalize(model, raw)
        calibration = normalization.calibrate(normalized, source) | raw_stats
        if source == "training" and len(unseen) >= normalization.ENOUGH:
            again = normalization.choose_samples(unseen, config.normalization_samples, config.seed)
            raw = normalization.score(run, model, again, pad_token_id, size)
            calibration = normalization.calibrate(raw - offset, "held_out") | raw_stats
        run.say(normalization.describe(calibration, metrics))
        run.finish(model, metrics, calibration, offset)
