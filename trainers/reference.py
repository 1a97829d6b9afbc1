"""The frozen reference policy, asked once for each pair and never again."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from trainers import adapters, models
from trainers.data import PairBatch
from trainers.devices import Devices
from trainers.logprobs import sequence_logps, token_logprobs

WhileAsked = Callable[[], AbstractContextManager[None]]
"""Makes a model the reference that is something else at other times."""


def open_reference(policy: Any, devices: Devices) -> tuple[Any, WhileAsked]:
    """What the policy is held to: a frozen copy of it, or itself with its adapter off."""
    if adapters.is_adapted(policy):
        return policy, partial(adapters.off, policy)
    return devices.place(models.freeze(policy)), nullcontext


class ReferenceLogps:
    """Log-probabilities of pairs under a frozen model, computed when a batch first needs them.

    Later epochs read them back, and a continued run gets them from its checkpoint: recomputed in another
    batch they would differ in the last bits. Every process knows what the others computed.
    """

    def __init__(
        self, reference: Any, num_pairs: int, devices: Devices, while_asked: WhileAsked = nullcontext
    ) -> None:
        self.reference, self.devices, self.while_asked = reference, devices, while_asked
        self.logps_P2 = torch.full((num_pairs, 2), torch.nan)

    def of(self, batch: PairBatch) -> torch.Tensor:
        """The reference's log-probabilities of a batch's rows, chosen then rejected: (2P,), nats per
        sequence.
        """
        known_P2 = self.logps_P2[batch.indices]
        if self.devices.any(bool(known_P2.isnan().any())):
            with torch.no_grad(), self.while_asked():
                logprobs_N = self.devices.call(
                    self.reference, token_logprobs, self.reference, batch.sequences
                )
                known_P2 = sequence_logps(logprobs_N, batch.sequences).view(2, -1).T.cpu()
            for indices, logps_P2 in self.devices.gather((batch.indices, known_P2)):
                self.logps_P2[indices] = logps_P2
        return known_P2.T.flatten().to(batch.sequences.input_ids_BT.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has been computed so far."""
        return {"reference_logps": self.logps_P2}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what a checkpoint saved."""
        self.logps_P2 = state["reference_logps"].clone()
