"""The compact output head against a plain full forward pass: values, gradients, chunks, padding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.conftest import make_model
from trainers.data import CausalBatch, Tokens, collate_tokens
from trainers.logprobs import (
    head_logprobs,
    sequence_lengths,
    sequence_logps,
    token_logprobs,
    token_logprobs_and_entropies,
)

EXAMPLES = [
    Tokens([5, 9, 30, 31, 32, 1], [3, 4, 5]),
    Tokens([7, 40, 1, 8, 50, 51, 52, 53, 1], [1, 2, 5, 8]),
    Tokens([6, 60, 1], [2]),
]


def batch() -> CausalBatch:
    return collate_tokens(EXAMPLES, pad_token_id=0)


def naive(model: Any, example: Tokens) -> torch.Tensor:
    """The log-probabilities of one unpadded row, by a full forward pass and a full log-softmax."""
    logits_TV = model(input_ids=torch.tensor([example.ids])).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    return torch.stack([logprobs_TV[at - 1, example.ids[at]] for at in example.targets])


def test_equals_a_full_forward_of_each_row_alone(model: Any) -> None:
    expected_N = torch.cat([naive(model, example) for example in EXAMPLES])
    torch.testing.assert_close(token_logprobs(model, batch()), expected_N, atol=1e-5, rtol=0)


def test_chunks_change_nothing_but_memory(model: Any) -> None:
    whole_N = token_logprobs(model, batch())
    # Three rows of 261 logits at a time: eight targets make three chunks.
    torch.testing.assert_close(token_logprobs(model, batch(), max_logits=3 * 261), whole_N)
    with torch.no_grad():
        torch.testing.assert_close(token_logprobs(model, batch(), max_logits=1), whole_N)


@pytest.mark.parametrize("max_logits", [2**26, 3 * 261])
def test_gradients_equal_the_naive_ones(max_logits: int) -> None:
    compact, plain = make_model(), make_model()
    token_logprobs(compact, batch(), max_logits).sum().backward()
    torch.cat([naive(plain, example) for example in EXAMPLES]).sum().backward()
    pairs = zip(compact.parameters(), plain.parameters(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-4)


def test_sequence_logps_sum_each_row() -> None:
    # Targets per row: 3, 4 and 1.
    logprobs_N = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 40.0, 7.0])
    assert sequence_logps(logprobs_N, batch()).tolist() == [6.0, 100.0, 7.0]


def test_sequence_lengths_count_the_targets_of_each_row() -> None:
    assert sequence_lengths(batch()).tolist() == [3, 4, 1]


def test_what_is_padded_changes_nothing(model: Any) -> None:
    alone = token_logprobs(model, collate_tokens(EXAMPLES[2:], 0))
    padded = token_logprobs(model, collate_tokens(EXAMPLES, 33))
    torch.testing.assert_close(padded[-1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_logits", [2**26, 3 * 261])
def test_entropies_and_temperature_against_the_whole_distribution(model: Any, max_logits: int) -> None:
    logprobs_N, entropies_N = token_logprobs_and_entropies(model, batch(), 0.7, max_logits)
    torch.testing.assert_close(logprobs_N, token_logprobs(model, batch(), max_logits, temperature=0.7))
    expected = []
    for example in EXAMPLES:
        logits_TV = model(torch.tensor([example.ids])).logits[0] / 0.7
        for at in example.targets:
            own = torch.distributions.Categorical(logits=logits_TV[at - 1])
            expected.append((own.log_prob(torch.tensor(example.ids[at])), own.entropy()))
    torch.testing.assert_close(logprobs_N, torch.stack([logprob for logprob, _ in expected]))
    torch.testing.assert_close(entropies_N, torch.stack([entropy for _, entropy in expected]))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 30.0, 1e4]))
def test_log_probabilities_and_gradients_are_those_of_torchs_cross_entropy(seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    head, ours = torch.nn.Linear(4, 9), torch.randn(6, 4, generator=random).mul_(scale).requires_grad_()
    theirs, targets = ours.detach().clone().requires_grad_(), torch.randint(9, (6,), generator=random)
    found = head_logprobs(head, ours, targets)
    expected = -torch.nn.functional.cross_entropy(head(theirs), targets, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * scale)
    weights = torch.randn(6, generator=random)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
