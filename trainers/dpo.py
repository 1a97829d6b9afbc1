"""Direct methods: the policy learns from pairs, without a reward model and without sampling.

    --loss_type sigmoid    DPO; with --label_smoothing, conservative DPO
                ipo        IPO over log-ratios per token (as TRL), ipo_sum over whole answers (as the paper)
                hinge      a hinge on DPO's margin (RSO)
                slic_hf    SLiC-HF: a hinge on log-probabilities, and likelihood of the chosen answer
                orpo       ORPO: likelihood of the chosen answer, and an odds ratio

The first four hold the policy to a frozen copy of where it started, which is asked once for each pair, when
its batch first comes up; the last two have no such copy. With --use_peft the copy is the policy itself, its
adapter off. Log-probabilities are of the answer's tokens, the end-of-turn token included. Chosen and rejected
go through the policy in one forward pass. AdamW is used, not the papers' RMSprop or Adafactor.

    python -m trainers dpo --model_name_or_path runs/sft --dataset_name pairs.jsonl --output_dir runs/dpo
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

from trainers.adapter_config import AdapterConfig
from trainers.config import parse
from trainers.errors import ConfigError
from trainers.judged_config import JudgedEvaluationConfig

KNOBS = {
    "sigmoid": ("beta", "label_smoothing"),
    "ipo": ("beta",),
    "ipo_sum": ("beta",),
    "hinge": ("beta",),
    "slic_hf": ("delta", "sft_coef"),
    "orpo": ("beta",),
}
"""Loss -> the settings that it reads; another one of them is refused, not ignored."""
REFERENCE_FREE = ("slic_hf", "orpo")


@dataclass(frozen=True, kw_only=True)
class Config(JudgedEvaluationConfig, AdapterConfig):
    """Settings of the direct methods."""

    learning_rate: float = 1e-6
    """Peak learning rate, after warm-up; small models bear much more (1e-4 for 3M parameters)."""
    loss_type: Literal["sigmoid", "ipo", "ipo_sum", "hinge", "slic_hf", "orpo"] = "sigmoid"
    """The method: DPO (`sigmoid`), IPO, a hinge on DPO's margin, SLiC-HF or ORPO."""
    beta: float = 0.1
    """How strongly the policy is held to the reference: higher stays nearer. For `orpo` the weight of the
    odds ratio."""
    label_smoothing: float = 0.0
    """`sigmoid`: the share of labels taken to be flipped (conservative DPO); below 0.5."""
    delta: float = 1.0
    """`slic_hf`: how far apart the log-probabilities of a pair shall be, in nats per answer."""
    sft_coef: float = 0.5
    """`slic_hf`: weight of the likelihood of the chosen answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("beta", "delta"), lambda value: 0 < value < float("inf"), "above 0")
        self._check(("label_smoothing",), lambda value: 0 <= value < 0.5, "in [0, 0.5)")
        self._check(("sft_coef",), lambda value: 0 <= value < float("inf"), "0 or above")
        knobs = {name for names in KNOBS.values() for name in names}
        for field in fields(self):
            is_idle = field.name in knobs and field.name not in KNOBS[self.loss_type]
            if is_idle and getattr(self, field.name) != field.default:
                raise ConfigError(f"--{field.name} means nothing to --loss_type {self.loss_type}")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "dpo", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import adapters, data, direct, encoding, formats, held_out, models
    from trainers.inputs import load_inputs
    from trainers.logprobs import sequence_lengths, sequence_logps, token_logprobs
    from trainers.loop import Loss, evaluate_loss, train
    from trainers.reference import ReferenceLogps, open_reference
    from trainers.run import start

    method = direct.METHODS[config.loss_type]
    with start(config, "dpo") as run:
        inputs = load_inputs(run, config, formats.read_pairs, encoding.tokenize_pairs)
        policy = models.load_policy(inputs.parent, inputs.tokenizer, inputs.attention)
        models.add_end_tokens(policy, {example.chosen.ids[-1] for example in inputs.examples})
        if config.use_peft:
            run.say(adapters.add(policy, config, inputs.parent.name))
        known = known_held_out = None
        if config.loss_type not in REFERENCE_FREE:
            reference, while_asked = open_reference(policy, run.devices)
            known = ReferenceLogps(reference, inputs.num_rows, run.devices, while_asked)
            known_held_out = ReferenceLogps(reference, inputs.num_held_out_rows, run.devices, while_asked)

        def loss_fn(known: ReferenceLogps | None, batch: data.PairBatch) -> Loss:
            reference = direct.Sides(*known.of(batch).chunk(2)) if known else None
            logps_2B = sequence_logps(token_logprobs(policy, batch.sequences), batch.sequences)
            lengths_2B = sequence_lengths(batch.sequences)
            pairs = direct.Pairs(
                direct.Sides(*logps_2B.chunk(2)), reference, direct.Sides(*lengths_2B.chunk(2))
            )
            outcome = method(pairs, config)
            return Loss(outcome.values_B, batch.sequences.num_tokens, direct.metrics(pairs, outcome))

        collate = partial(data.collate_pairs, pad_token_id=inputs.tokenizer.pad_token_id)
        size, part = config.per_device_train_batch_size, run.devices.part
        batches = data.Batches(inputs.examples, collate, size, config.seed, part)
        unseen = data.Batches(inputs.held_out, collate, size, None, part)
        judged = held_out.load(run, config, inputs, policy, formats.read_pairs)
        evaluate_pairs = partial(evaluate_loss, run, policy, unseen, partial(loss_fn, known_held_out))
        metrics = train(
            run,
            policy,
            batches,
            partial(loss_fn, known),
            held_out.both(evaluate_pairs if len(unseen) else None, judged),
            memory=known,
        )
        run.finish(policy, metrics)
    return 0
