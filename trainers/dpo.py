"""Direct preference optimization: the policy learns from pairs against a frozen copy of where it started.

Loss and label smoothing: losses.dpo (Rafailov et al. 2023). Log-probabilities are sums over the answer's
tokens, the end-of-turn token included. Chosen and rejected go through the policy in one forward pass; the
reference is asked once for each pair, when its batch first comes up. AdamW is used, not the paper's RMSprop.

    python -m trainers dpo --model_name_or_path runs/sft --dataset_name pairs.jsonl --output_dir runs/dpo
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from trainers.config import TrainingConfig, parse


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Settings of direct preference optimization."""

    learning_rate: float = 1e-6
    """Peak learning rate, after warm-up; small models bear much more (1e-4 for 3M parameters)."""
    beta: float = 0.1
    """How strongly the policy is held to the reference: higher stays nearer."""
    label_smoothing: float = 0.0
    """The share of labels taken to be flipped (conservative DPO); below 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("beta",), lambda value: 0 < value < float("inf"), "above 0")
        self._check(("label_smoothing",), lambda value: 0 <= value < 0.5, "in [0, 0.5)")


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "dpo", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import data, encoding, formats, losses, models
    from trainers.inputs import load_inputs
    from trainers.logprobs import sequence_logps, token_logprobs
    from trainers.loop import Loss, evaluate_loss, train
    from trainers.reference import ReferenceLogps
    from trainers.run import start

    with start(config, "dpo") as run:
        inputs = load_inputs(run, config, formats.read_pairs, encoding.tokenize_pairs)
        policy = models.load_policy(inputs.parent, inputs.tokenizer, inputs.attention)
        models.add_end_tokens(policy, {example.chosen.ids[-1] for example in inputs.examples})
        reference = models.freeze(policy).to(run.device)

        def loss_fn(known: ReferenceLogps, batch: data.PairBatch) -> Loss:
            reference_chosen_B, reference_rejected_B = known.of(batch).chunk(2)
            logps_2B = sequence_logps(token_logprobs(policy, batch.sequences), batch.sequences)
            chosen_B, rejected_B = logps_2B.chunk(2)
            values_B = losses.dpo(
                chosen_B,
                rejected_B,
                reference_chosen_B,
                reference_rejected_B,
                config.beta,
                config.label_smoothing,
            )
            chosen_rewards_B = config.beta * (chosen_B - reference_chosen_B)
            rejected_rewards_B = config.beta * (rejected_B - reference_rejected_B)
            metrics = {
                "rewards/chosen": chosen_rewards_B,
                "rewards/rejected": rejected_rewards_B,
                "rewards/margins": chosen_rewards_B - rejected_rewards_B,
                "rewards/accuracies": (chosen_rewards_B > rejected_rewards_B).float(),
                "logps/chosen": chosen_B,
                "logps/rejected": rejected_B,
            }
            return Loss(values_B, batch.sequences.num_tokens, metrics)

        collate = partial(data.collate_pairs, pad_token_id=inputs.tokenizer.pad_token_id)
        batches = data.Batches(inputs.examples, collate, config.per_device_train_batch_size, config.seed)
        held_out = data.Batches(inputs.held_out, collate, config.per_device_train_batch_size, seed=None)
        known = ReferenceLogps(reference, inputs.num_rows)
        known_held_out = ReferenceLogps(reference, inputs.num_held_out_rows)
        evaluate = partial(evaluate_loss, run, held_out, partial(loss_fn, known_held_out))
        metrics = train(
            run,
            policy,
            batches,
            partial(loss_fn, known),
            evaluate if inputs.held_out else None,
            memory=known,
        )
        run.finish(policy, metrics)
    return 0
