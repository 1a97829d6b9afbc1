"""Supervised fine-tuning: maximum likelihood of the assistant's turns.

The loss is the mean negative log-likelihood of the assistant's tokens, the end-of-turn token included, over
all such tokens of a step. Prompts carry no loss and their logits are never computed.

    python -m trainers sft --model_name_or_path BASE --dataset_name demos.jsonl --output_dir runs/sft
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from trainers.adapter_config import AdapterConfig
from trainers.config import parse
from trainers.judged_config import JudgedEvaluationConfig


@dataclass(frozen=True, kw_only=True)
class Config(JudgedEvaluationConfig, AdapterConfig):
    """Settings of supervised fine-tuning."""

    learning_rate: float = 2e-5
    """Peak learning rate, after warm-up; small models bear much more (1e-3 for 3M parameters)."""


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "sft", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import adapters, data, encoding, formats, held_out, losses, models
    from trainers.inputs import load_inputs
    from trainers.logprobs import token_logprobs
    from trainers.loop import Loss, evaluate_loss, train
    from trainers.run import start

    with start(config, "sft") as run:
        inputs = load_inputs(run, config, formats.read_demonstrations, encoding.tokenize_demonstrations)
        policy = models.load_policy(inputs.parent, inputs.tokenizer, inputs.attention)
        models.add_end_tokens(policy, {example.ids[-1] for example in inputs.examples})
        if config.use_peft:
            run.say(adapters.add(policy, config, inputs.parent.name))

        def loss_fn(batch: data.CausalBatch) -> Loss:
            return Loss(losses.sft_nll(token_logprobs(policy, batch)), batch.num_tokens)

        collate = partial(data.collate_tokens, pad_token_id=inputs.tokenizer.pad_token_id)
        size, part = config.per_device_train_batch_size, run.devices.part
        batches = data.Batches(inputs.examples, collate, size, config.seed, part)
        unseen = data.Batches(inputs.held_out, collate, size, None, part)
        judged = held_out.load(run, config, inputs, policy, formats.read_demonstrations)
        evaluate = held_out.both(
            partial(evaluate_loss, run, policy, unseen, loss_fn) if len(unseen) else None, judged
        )
        metrics = train(run, policy, batches, loss_fn, evaluate)
        run.finish(policy, metrics)
    return 0
