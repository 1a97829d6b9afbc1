"""The reference is asked once for each pair."""

from typing import Any

import torch

from trainers.data import PairBatch, PairTokens, Tokens, collate_pairs
from trainers.devices import Devices
from trainers.logprobs import sequence_logps, token_logprobs
from trainers.reference import ReferenceLogps

DEVICES = Devices(torch.device("cpu"))
PAIRS = [
    PairTokens(Tokens([5, 9, 30, 1], [2, 3]), Tokens([5, 9, 40, 41, 1], [2, 3, 4]), 0.0, index)
    for index in range(3)
]


class Counting(torch.nn.Module):
    """A model that counts its forward passes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    @property
    def base_model(self) -> Any:
        self.calls += 1
        return self.model.base_model

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()


def batch(*indices: int) -> PairBatch:
    return collate_pairs([PAIRS[index] for index in indices], pad_token_id=0)


def test_values_are_the_models_own(model: Any) -> None:
    logps_2P = ReferenceLogps(model, 3, DEVICES).of(batch(0, 1))
    sequences = batch(0, 1).sequences
    torch.testing.assert_close(logps_2P, sequence_logps(token_logprobs(model, sequences), sequences))
    assert not logps_2P.requires_grad


def test_each_pair_is_computed_once(model: Any) -> None:
    counting = Counting(model)
    known = ReferenceLogps(counting, 3, DEVICES)
    first = known.of(batch(0, 2))
    assert counting.calls == 1
    swapped = known.of(batch(2, 0))
    assert counting.calls == 1
    assert swapped.tolist() == first[[1, 0, 3, 2]].tolist()
    known.of(batch(1))
    assert counting.calls == 2


def test_what_was_computed_is_carried_over(model: Any) -> None:
    known = ReferenceLogps(model, 3, DEVICES)
    first = known.of(batch(0, 1, 2))
    counting = Counting(model)
    continued = ReferenceLogps(counting, 3, DEVICES)
    continued.load_state_dict(known.state_dict())
    assert torch.equal(continued.of(batch(0, 1, 2)), first)
    assert counting.calls == 0
