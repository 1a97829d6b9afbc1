"""Batches: what is in them, and that their order depends on seed and epoch alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.data import (
    Batches,
    Idle,
    PairTokens,
    Part,
    Tokens,
    collate_pairs,
    collate_reward_pairs,
    collate_rewards,
    collate_tokens,
    join_parts,
    keep_usable,
)
from trainers.errors import DataError


def tokens(length: int) -> Tokens:
    return Tokens(list(range(10, 10 + length)), [length - 1])


def pair(chosen: int, rejected: int, index: int = 0) -> PairTokens:
    return PairTokens(tokens(chosen), tokens(rejected), 0.5, index)


def test_collated_by_hand() -> None:
    batch = collate_tokens([Tokens([10, 11, 12, 13], [2, 3]), Tokens([20, 21], [1])], pad_token_id=0)
    # The last token of the longest row is only predicted, so three columns are enough.
    assert batch.input_ids_BT.tolist() == [[10, 11, 12], [20, 21, 0]]
    # Targets at 2 and 3 of row 0 are predicted from columns 1 and 2; the one at 1 of row 1 from 3 + 0.
    assert batch.positions_N.tolist() == [1, 2, 3]
    assert batch.targets_N.tolist() == [12, 13, 21]
    assert batch.rows_N.tolist() == [0, 0, 1]
    assert batch.num_tokens == 6


def test_pairs_are_chosen_rows_then_rejected_rows() -> None:
    batch = collate_pairs([pair(2, 3, index=4), pair(5, 2, index=9)], pad_token_id=0)
    assert (batch.sequences.input_ids_BT > 0).sum(1).tolist() == [2, 4, 3, 2]
    assert batch.sequences.rows_N.tolist() == [0, 1, 2, 3]
    assert batch.indices == [4, 9]


def test_rewards_are_read_at_the_last_token() -> None:
    batch = collate_reward_pairs([pair(2, 3), pair(4, 1)], pad_token_id=0)
    assert batch.last_B.tolist() == [1, 3, 2, 0]
    assert batch.input_ids_BT.gather(1, batch.last_B[:, None]).flatten().tolist() == [11, 13, 12, 10]
    assert batch.margins_P.tolist() == [0.5, 0.5]
    assert collate_rewards([tokens(3)], 0).input_ids_BT.tolist() == [[10, 11, 12]]


def test_a_moved_batch_is_whole() -> None:
    batch = collate_pairs([pair(2, 3)], pad_token_id=0)
    moved = batch.to(torch.device("cpu"))
    assert moved.indices == batch.indices
    assert moved.sequences.num_tokens == 5
    assert moved.sequences.input_ids_BT.equal(batch.sequences.input_ids_BT)


lengths = st.lists(st.integers(2, 40), min_size=1, max_size=200)


@given(lengths, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    batches = Batches([tokens(n) for n in lengths], list, size, seed)
    order = batches.order(epoch)
    assert sorted(index for batch in order for index in batch) == list(range(len(lengths)))
    assert len(order) == len(batches)
    assert sorted(map(len, order), reverse=True)[:-1] == [size] * (len(order) - 1)


@given(lengths, st.integers(1, 9), st.integers(0, 5))
def test_the_order_is_that_of_seed_and_epoch(lengths: list[int], size: int, seed: int) -> None:
    one, other = (Batches([tokens(n) for n in lengths], list, size, seed) for _ in range(2))
    assert one.order(1) == other.order(1)
    assert list(one.epoch(1, start=2)) == list(other.epoch(1))[2:]


@given(lengths, st.integers(1, 4), st.integers(1, 4), st.sampled_from([None, 3]))
def test_the_parts_of_all_processes_are_the_batches_of_one(
    lengths: list[int], size: int, count: int, seed: int | None
) -> None:
    examples = [tokens(n) for n in lengths]
    whole = list(Batches(examples, list, size * count, seed).epoch(1))
    parts = [list(Batches(examples, list, size, seed, Part(n, count)).epoch(1)) for n in range(count)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert isinstance(batch, list)
        shared = [share for share in shares if isinstance(share, list)]
        assert sorted(len(example) for share in shared for example in share) == sorted(map(len, batch))
        assert all(len(share) <= size for share in shared)
        assert all(share == Idle(batch[:1]) for share in shares if share not in shared)


def test_seeds_and_epochs_differ() -> None:
    examples = [tokens(2 + n % 7) for n in range(64)]
    orders = [Batches(examples, list, 4, seed).order(epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4


def test_batches_are_of_like_length() -> None:
    examples = [tokens(2 + n % 50) for n in range(400)]
    order = Batches(examples, list, 8, seed=0).order(0)
    spread = [max(n) - min(n) for n in ([len(examples[i]) for i in batch] for batch in order)]
    # Each of the 50 lengths comes eight times: sorted within the whole, a batch holds one length.
    assert max(spread) == 0
    assert [len(examples[batch[0]]) for batch in order] != sorted(range(2, 52), reverse=True)


def test_unshuffled_is_longest_first() -> None:
    batches = Batches([tokens(n) for n in (3, 9, 5)], list, 2, seed=None)
    assert batches.order(0) == batches.order(7) == [[1, 2], [0]]


def test_long_rows_and_ties_are_dropped_and_counted() -> None:
    kept, notes = keep_usable([pair(2, 3), pair(9, 3), pair(4, 4)], max_length=8)
    assert kept == [pair(2, 3)]
    assert notes == [
        "dropped 1 of 3 rows, which are longer than 8 tokens",
        "dropped 1 preferences between answers that are the same",
    ]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing is left"):
        keep_usable([tokens(9)], max_length=8)


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_parts_joined_are_the_whole(items: list[int], count: int) -> None:
    parts = [Part(index, count).of(items) for index in range(count)]
    assert join_parts(parts) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
