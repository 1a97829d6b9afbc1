"""Packed rows against each row alone: the same log-probabilities, rewards and gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.trainers.conftest import MODEL_SHAPE, make_model
from trainers.data import (
    ChoiceTokens,
    PairTokens,
    Tokens,
    collate_choices,
    collate_pairs,
    collate_reward_pairs,
    collate_tokens,
)
from trainers.logprobs import states_at, token_logprobs
from trainers.models import rewards
from trainers.packed_attention import WORTH_NARROWING, NotPackableError, is_packable, packed_attention
from trainers.packing import pack

PAIRS = [
    PairTokens(Tokens([5, 9, 30, 31, 32, 1], [3, 4, 5]), Tokens([5, 9, 30, 40, 1], [3, 4]), 0.0, 0),
    PairTokens(Tokens([7, 8, 1], [2]), Tokens([7, 8, 50, 51, 52, 53, 54, 1], [2, 3, 4, 5, 6, 7]), 0.0, 1),
    PairTokens(Tokens([60, 61], [1]), Tokens([62, 61, 1], [2]), 0.0, 2),
]


def qwen(attention: str) -> Any:
    """Two heads share each head of keys; queries and keys are normed."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**MODEL_SHAPE, attn_implementation=attention)).eval()


def gpt2() -> Any:
    """Learned positions."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 99}
    off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **off, initializer_range=0.2)).eval()


MAKERS = {
    "llama": make_model,
    "qwen3, sdpa": lambda: qwen("sdpa"),
    "qwen3, eager": lambda: qwen("eager"),
    "gpt2": gpt2,
}


def make_judge() -> Any:
    """A head over the model's states."""
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**MODEL_SHAPE, num_labels=1, pad_token_id=0)).eval()


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", MAKERS)
def test_packed_pairs_have_the_values_and_gradients_of_padded_ones(name: str) -> None:
    packed, padded = MAKERS[name](), MAKERS[name]()
    packed.is_packable = is_packable(packed)
    assert packed.is_packable
    batch = collate_pairs(PAIRS, 0).sequences
    assert batch.packing is not None
    # Of 24 cells: the prompts of two pairs and the padding are gone.
    assert len(batch.packing.ids_T) < batch.input_ids_BT.numel() - 8
    weights_N = torch.linspace(-1, 1, len(batch.targets_N))
    found_N = token_logprobs(packed, batch)
    (found_N * weights_N).sum().backward()
    expected_N = token_logprobs(padded, replace(batch, packing=None))
    (expected_N * weights_N).sum().backward()
    torch.testing.assert_close(found_N, expected_N, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(packed), gradients(padded), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_where_few_places_are_wanted_values_and_gradients_stay(name: str) -> None:
    packed, padded = MAKERS[name](), MAKERS[name]()
    packed.is_packable = is_packable(packed)
    batch = collate_pairs(PAIRS, 0).sequences
    assert batch.packing is not None
    length = batch.input_ids_BT.shape[1]
    # A token that both sides of the first pair share, wanted by both, and one of the second side alone.
    cells_N = torch.tensor([1, len(PAIRS) * length + 1, len(PAIRS) * length + 3])
    assert len(batch.packing.place(cells_N).unique()) == 2 < WORTH_NARROWING * len(batch.packing.ids_T)
    weights_N1 = torch.tensor([[1.0], [-3.0], [2.0]])
    found_ND = states_at(packed, batch, cells_N)
    (found_ND.square() * weights_N1).sum().backward()
    expected_ND = states_at(padded, replace(batch, packing=None), cells_N)
    (expected_ND.square() * weights_N1).sum().backward()
    torch.testing.assert_close(found_ND, expected_ND, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(packed), gradients(padded), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_packed_documents_do_not_see_each_other() -> None:
    model = make_model()
    model.is_packable = is_packable(model)
    examples = [Tokens([5, 9, 30, 31, 32, 1], [3, 4, 5]), Tokens([5, 9, 1], [2]), Tokens([8, 1], [1])]
    whole = collate_tokens(examples, 0)
    assert whole.packing is not None
    alone_N = torch.cat([token_logprobs(model, collate_tokens([example], 0)) for example in examples])
    torch.testing.assert_close(token_logprobs(model, whole), alone_N, atol=1e-5, rtol=1e-5)


def test_rewards_of_pairs_and_choices_are_those_of_each_alone() -> None:
    reward_model = make_judge()
    reward_model.is_packable = is_packable(reward_model)
    candidates = [Tokens([5, 9, 30, 31], []), Tokens([5, 9, 40], []), Tokens([5, 9, 30, 31, 32], [])]
    rows = collate_choices([ChoiceTokens(candidates, 0.0, "")], 0).rows
    pairs = collate_reward_pairs(PAIRS, 0)
    for batch in (rows, pairs):
        assert batch.packing is not None
        expected_B = rewards(reward_model, replace(batch, packing=None))
        torch.testing.assert_close(rewards(reward_model, batch), expected_B, atol=1e-5, rtol=1e-5)


def test_the_same_batch_gives_the_same_bits() -> None:
    batch = collate_pairs(PAIRS, 0).sequences
    found = []
    for _ in range(2):
        model = make_model()
        model.is_packable = True
        token_logprobs(model, batch).sum().backward()
        found.append(gradients(model))
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


def test_the_usual_attention_is_back_after_a_packed_row() -> None:
    model = qwen("eager")
    assert is_packable(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_with_a_window_is_not_packed() -> None:
    model = MistralForCausalLM(MistralConfig(**MODEL_SHAPE, sliding_window=2)).eval()
    assert not is_packable(model)
    assert model.config._attn_implementation != "bonsai_packed_training"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "no packed row"),
        ({"softcap": 5.0}, "softcap"),
        ({"dropout": 0.1}, "no packed row"),
        ({"attention_mask": torch.zeros(1)}, "no packed row"),
    ],
)
def test_what_is_not_done_here_is_refused(given: dict[str, Any], reason: str) -> None:
    part = torch.zeros(1, 1, 2, 4)
    mask = given.pop("attention_mask", None)
    packing = pack([[1, 2], [1]], [[0, 1]], 2) if given or mask is not None else None
    with pytest.raises(NotPackableError, match=reason):
        packed_attention(torch.nn.Module(), part, part, part, mask, packing=packing, **given)
