"""Choices among several answers, from the row to the loss."""

from typing import Any

import pytest
import torch

from tests.trainers.conftest import WriteRows, make_model, make_tokenizer
from trainers import encoding, formats, preferences
from trainers.chat import ChatEncoder
from trainers.data import ChoiceTokens, PairTokens, Tokens, collate_choices, collate_reward_pairs, keep_usable
from trainers.errors import DataError


class Scored(torch.nn.Module):
    """A model with a reward head."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = make_model().base_model
        self.score = torch.nn.Linear(32, 1, bias=False)


ROW = {"prompt": "q", "responses": ["a", "bb", "ccc"], "best": 1, "margin": 0.5, "source": "labeller 7"}


def text_of(conversation: formats.Demonstration) -> str:
    return conversation.messages[-1]["content"]


def test_a_row_puts_the_best_first(write_rows: WriteRows) -> None:
    (choice,), _ = formats.read_choices(str(write_rows("c.jsonl", [ROW])))
    assert [text_of(candidate) for candidate in choice.candidates] == ["bb", "a", "ccc"]
    assert (choice.margin, choice.source) == (0.5, "labeller 7")


def test_answers_that_are_labelled_are_good_and_bad_by_themselves(write_rows: WriteRows) -> None:
    row = {"prompt": "q", "chosen": "right", "rejected": "wrong", "margin": 0.5, "source": "votes"}
    pairs, (source,) = preferences.read_labelled(str(write_rows("p.jsonl", [row])))
    answers = [tuple(text_of(side) for side in pair.sides()) for pair in pairs]
    assert answers == [("GOOD: right", "BAD: right"), ("BAD: wrong", "GOOD: wrong")]
    assert [(pair.prompt[0]["content"], pair.margin, pair.source) for pair in pairs] == [
        ("q", 0.0, "votes")
    ] * 2
    assert source.rows == 1


def test_a_pair_is_a_choice_of_two_from_its_file(write_rows: WriteRows) -> None:
    path = write_rows("p.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    (choice,), _ = formats.read_choices(str(path))
    assert [text_of(candidate) for candidate in choice.candidates] == ["good", "bad"]
    assert (choice.margin, choice.source) == (0.0, "p.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": 3}, "`best` must be the index of one of the responses"),
        ({"best": -1}, "`best` must be the index"),
        ({"best": True}, "`best` must be the index"),
        ({"best": "bb"}, "`best` must be the index"),
        ({"best": None, "responses": []}, "`responses` must be a list"),
        ({"source": 7}, "`source` must be a string"),
        ({"margin": float("nan")}, "`margin` must be a finite number"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str, write_rows: WriteRows) -> None:
    path = write_rows("c.jsonl", [ROW, ROW | change])
    with pytest.raises(DataError, match=f"c.jsonl, line 2: {message}"):
        formats.read_choices(str(path))


def test_a_row_without_a_choice_says_what_is_missing(write_rows: WriteRows) -> None:
    path = write_rows("c.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    with pytest.raises(DataError, match="needs `prompt`, `responses` and `best`"):
        formats.read_choices(str(path))


def test_candidates_that_equal_the_best_are_left_out(write_rows: WriteRows) -> None:
    rows = [ROW | {"responses": ["x", "x", "y"]}, ROW | {"responses": ["x", "x"]}]
    choices, _ = formats.read_choices(str(write_rows("c.jsonl", rows)))
    tokens = encoding.tokenize_choices(choices, ChatEncoder(make_tokenizer()))
    assert [len(choice.candidates) for choice in tokens] == [2, 1]
    kept, notes = keep_usable(tokens, 128)
    assert kept == tokens[:1]
    assert notes == ["dropped 1 preferences between answers that are the same"]


def test_rewards_are_laid_out_by_choice() -> None:
    rewards_CK = preferences.by_choice(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([2, 3]))
    assert rewards_CK.tolist() == [[1.0, 2.0, -torch.inf], [3.0, 4.0, 5.0]]


CHOICES = [
    ChoiceTokens([Tokens([5, 9, 1], []), Tokens([5, 10, 11, 1], [])], 0.25, "s"),
    ChoiceTokens([Tokens([6, 12, 1], []), Tokens([6, 13, 1], []), Tokens([6, 14, 15, 1], [])], 0.0, "s"),
]


def test_the_loss_is_the_softmax_over_each_choice_alone() -> None:
    model = Scored()
    loss = preferences.choice_loss(model, collate_choices(CHOICES, 0), 0.5)
    expected, leads = [], []
    for choice in CHOICES:
        rows = [torch.tensor([candidate.ids]) for candidate in choice.candidates]
        rewards = torch.cat([model.score(model.base_model(ids).last_hidden_state[:, -1])[0] for ids in rows])
        shifted = rewards - torch.tensor([choice.margin] + [0.0] * (len(rows) - 1))
        expected.append(-shifted.log_softmax(0)[0] + 0.5 * (2 * rewards.mean()) ** 2)
        leads.append(rewards[0] - rewards[1:].max())
    torch.testing.assert_close(loss.values, torch.stack(expected))
    torch.testing.assert_close(loss.metrics["margin"], torch.stack(leads))
    assert loss.num_tokens == 3 + 4 + 3 + 3 + 4
    loss.values.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_choices_of_two_are_pairs() -> None:
    """Loss, metrics and gradients of Bradley-Terry."""
    rows = [row for row in CHOICES if len(row.candidates) == 2] * 2
    model = Scored()
    pairs = [PairTokens(row.candidates[0], row.candidates[1], row.margin, 0) for row in rows]
    by_pairs = preferences.pair_loss(model, collate_reward_pairs(pairs, 0), 0.1)
    by_choices = preferences.choice_loss(model, collate_choices(rows, 0), 0.1)
    torch.testing.assert_close(by_choices.values, by_pairs.values)
    torch.testing.assert_close(by_choices.metrics, by_pairs.metrics)
    gradients = [
        torch.autograd.grad(loss.values.sum(), model.score.weight) for loss in (by_pairs, by_choices)
    ]
    torch.testing.assert_close(*gradients)


def test_a_batch_goes_to_its_device_whole() -> None:
    batch = collate_choices(CHOICES, 0).to(torch.device("meta"))
    assert {batch.rows.input_ids_BT.device.type, batch.counts_C.device.type, batch.margins_C.device.type} == {
        "meta"
    }
