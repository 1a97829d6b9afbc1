"""PPO-ptx: the likelihood of other data, mixed into each optimizer step so that they are not forgotten.

The term is ptx_coef times the mean negative log-likelihood over the mixed-in target tokens, whatever their
number beside that of the episodes' tokens (Ouyang et al. 2022, eq. 2, has a sum over each).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from trainers import encoding, formats, losses
from trainers.data import Batches, CausalBatch, Idle, Tokens, collate_tokens, keep_usable
from trainers.devices import Devices
from trainers.episodes import Share
from trainers.logprobs import token_logprobs
from trainers.loop import Loss
from trainers.online_setup import Online
from trainers.run import Run


@dataclass(frozen=True, slots=True)
class PtxBatch:
    """Mixed-in data, with the weight of each target token's loss in the sum over a minibatch."""

    sequences: CausalBatch
    weight: float

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(self.sequences.to(device), self.weight)

    def loss(self, policy: Any) -> Loss:
        """The term of the step's loss that it adds; it counts for no unit of the mean."""
        nll_M = losses.sft_nll(token_logprobs(policy, self.sequences))
        return Loss(self.weight * nll_M, self.sequences.num_tokens, {"ptx_loss": nll_M}, num_units=0)


class PtxMix:
    """The data to mix in: for each optimizer step of a run the batch that is its turn."""

    def __init__(
        self, batches: Batches[Tokens, CausalBatch], coef: float, steps_per_step: int, devices: Devices
    ) -> None:
        self.batches, self.coef, self.steps_per_step = batches, coef, steps_per_step
        self.devices = devices

    @classmethod
    def load(cls, run: Run, online: Online, name: str, coef: float, batch_size: int) -> Self:
        """Reads the data and adds them to the run's sources."""
        rows, sources = formats.read_demonstrations(name)
        run.describe(online.tokenizer, online.parent, [*run.sources, *sources])
        max_length = online.context_length
        examples, notes = keep_usable(encoding.tokenize_demonstrations(rows, online.encoder), max_length)
        for note in notes:
            run.say(f"ptx: {note}")
        collate = partial(collate_tokens, pad_token_id=online.tokenizer.pad_token_id)
        config = online.config
        batches = Batches(examples, collate, batch_size, config.seed)
        return cls(batches, coef, config.num_ppo_epochs * config.num_mini_batches, run.devices)

    def share(self, step: int, number: int, window: Sequence[Share]) -> list[PtxBatch | Idle[PtxBatch]]:
        """What is mixed into the `number`-th optimizer step of a step: this process's part of it."""
        epoch, at = divmod(step * self.steps_per_step + number, len(self.batches))
        chosen = self.batches.order(epoch)[at]
        mine = self.devices.part.of(chosen)
        sequences = self.batches.collate([self.batches.examples[index] for index in mine or chosen[:1]])
        batches = [batch for batch in window if not isinstance(batch, Idle)]
        num_units, num_targets = self.devices.add_up(
            [
                sum(len(batch.sequences.targets_N) for batch in batches),
                len(sequences.targets_N) if mine else 0,
            ]
        )
        batch = PtxBatch(sequences, self.coef * num_units / num_targets)
        return [batch if mine else Idle(batch)]
