"""The bookkeeping of rollouts: what belongs to which token stays with it."""

import numpy as np
import pytest
import torch

from trainers.data import WHOLE, CausalBatch, Idle, Part
from trainers.devices import Devices
from trainers.episodes import Episode, EpisodeBatch, Episodes, ValueBatch
from trainers.prompts import Prompt
from trainers.rollout import Sample

PROMPT = Prompt([{"role": "user", "content": "q"}], False, [7, 8], "here")
RESPONSES = [[20, 21], [30, 31, 32, 1], [40], [50, 51, 1]]


def episodes(part: Part = WHOLE) -> Episodes:
    found = [Episode(PROMPT, Sample("text", ids, "stop" if ids[-1] == 1 else "length")) for ids in RESPONSES]
    devices = Devices(torch.device("cpu"), part)
    return Episodes(found, 0, devices, torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_lengths_ends_and_masks() -> None:
    batch = episodes()
    assert batch.lengths.tolist() == [2, 4, 1, 3]
    assert batch.is_ended.tolist() == [False, True, False, True]
    assert batch.mask_EL.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 99])
def test_what_is_computed_of_a_token_comes_to_its_place(batch_size: int) -> None:
    sizes = []

    def compute(batch: CausalBatch) -> list[torch.Tensor]:
        sizes.append(len(batch.input_ids_BT))
        return [batch.targets_N, 2 * batch.targets_N]

    ids_EL, twice_EL = episodes().each(None, compute, batch_size)
    assert ids_EL.tolist() == [[20, 21, 0, 0], [30, 31, 32, 1], [40, 0, 0, 0], [50, 51, 1, 0]]
    assert twice_EL.tolist() == (2 * ids_EL).tolist()
    assert sum(sizes) == 4
    assert max(sizes) == min(batch_size, 4)


def test_a_batch_takes_quantities_in_the_order_of_its_targets() -> None:
    whole = episodes()
    (whole.of_tokens["ids"],) = whole.each(None, lambda batch: [batch.targets_N], 2)
    whole.of_episodes["scores"] = whole.scores_E
    batch = whole.batch([3, 0])
    assert batch.of_tokens["ids"].tolist() == batch.sequences.targets_N.tolist() == [50, 51, 1, 20, 21]
    assert batch.of_episodes["scores"].tolist() == [4.0, 1.0]
    # The hidden state of the prompt's last token predicts the first token of the response.
    assert batch.sequences.input_ids_BT.tolist() == [[7, 8, 50, 51], [7, 8, 20, 21]]
    assert batch.sequences.positions_N.tolist() == [1, 2, 3, 5, 6]


def test_minibatches_hold_every_chosen_episode_once() -> None:
    whole = episodes()
    whole.of_episodes["row"] = torch.arange(4)
    windows = list(whole.minibatches([0, 1, 3], 2, 1, np.random.default_rng(0)))
    rows = [[int(batch.of_episodes["row"]) for batch in window] for window in windows]
    assert sorted(row for window in rows for row in window) == [0, 1, 3]
    assert [len(window) for window in windows] == [2, 1]
    for window in windows:
        lengths = [batch.sequences.num_tokens for batch in window]
        assert lengths == sorted(lengths, reverse=True)


def test_answers_to_a_prompt_are_side_by_side_and_it_is_computed_once() -> None:
    other = Prompt([{"role": "user", "content": "other"}], False, [9] * 10, "there")
    found = [
        Episode(prompt, Sample("text", [20 + number] * length, "length"))
        for number, (prompt, length) in enumerate([(other, 3), (PROMPT, 9), (other, 5), (PROMPT, 2)])
    ]
    whole = Episodes(found, 0, Devices(torch.device("cpu")), torch.zeros(4))
    packed: list[list[int]] = []

    def compute(batch: CausalBatch) -> list[torch.Tensor]:
        assert batch.packing is not None
        packed.append(batch.packing.ids_T.tolist())
        return [batch.targets_N]

    (ids_EL,) = whole.each(None, compute, 2)
    # The prompt with the longest row comes first; the last token of the batch's longest row has no successor.
    assert packed == [[9] * 10 + [22] * 4 + [20] * 3, [7, 8] + [21] * 8 + [23] * 2]
    assert ids_EL.tolist() == [[20 + row] * n + [0] * (9 - n) for row, n in enumerate([3, 9, 5, 2])]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_what_processes_compute_adds_up_to_the_whole(count: int) -> None:
    """A process without an episode of its own computes along, and adds nothing."""
    computed: list[int] = []

    def compute(batch: CausalBatch) -> list[torch.Tensor]:
        computed.append(len(batch.input_ids_BT))
        return [batch.targets_N]

    parts = [episodes(Part(index, count)).each(None, compute, 1)[0] for index in range(count)]
    (whole_EL,) = episodes().each(None, compute, 1)
    assert torch.equal(torch.stack(parts).sum(0), whole_EL)
    assert len(computed) == count * -(-4 // count) + 4


@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_minibatches_are_those_of_one_process(count: int) -> None:
    def windows(part: Part, batch_size: int) -> list[list[EpisodeBatch | Idle[EpisodeBatch]]]:
        held = episodes(part)
        held.of_episodes["row"] = torch.arange(4)
        return list(held.minibatches(range(4), 2, batch_size, np.random.default_rng(1)))

    shared = [windows(Part(index, count), 1) for index in range(count)]
    for number, window in enumerate(windows(WHOLE, count)):
        for at, batch in enumerate(window):
            assert isinstance(batch, EpisodeBatch)
            parts = [theirs[number][at] for theirs in shared]
            rows = [int(p.of_episodes["row"]) for p in parts if isinstance(p, EpisodeBatch)]
            assert rows == batch.of_episodes["row"].tolist()
            for part in parts:
                of_value = ValueBatch.of(part)
                assert isinstance(of_value, Idle) is isinstance(part, Idle)
                assert isinstance(of_value.stand_in if isinstance(of_value, Idle) else of_value, ValueBatch)
    assert any(isinstance(batch, Idle) for theirs in shared for window in theirs for batch in window) is (
        count == 3
    )
