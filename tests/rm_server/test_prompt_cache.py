"""What is kept is found again by its tokens, within the bytes that are allowed."""

from __future__ import annotations

import torch

from rm_server.metrics import Metrics
from rm_server.packing import MIN_SHARED
from rm_server.prompt_cache import KeptPrompt, Known, PromptCache
from tests.rm_server.fakes import sample

BYTES_PER_TOKEN = 2 * 4  # keys and values of one layer, one head of one float32


def prompt(ids: list[int]) -> KeptPrompt:
    return KeptPrompt(tuple(ids), {0: (torch.zeros(len(ids), 1, 1), torch.ones(len(ids), 1, 1))})


def numbers(start: int, num: int) -> list[int]:
    return list(range(start, start + num))


def test_a_row_that_goes_on_from_a_prompt_finds_it(metrics: Metrics) -> None:
    cache, kept = PromptCache(10_000, metrics), prompt(numbers(0, 30))
    cache.keep(kept)
    assert cache.find([*kept.ids, 7], 30) == Known(kept, 30)
    keys, values = Known(kept, 20).layer(0)
    assert keys.shape == values.shape == (20, 1, 1)


def test_the_last_token_of_a_row_is_always_computed(metrics: Metrics) -> None:
    cache, kept = PromptCache(10_000, metrics), prompt(numbers(0, 30))
    cache.keep(kept)
    assert cache.find(kept.ids, 0) == Known(kept, 29)
    assert cache.find(kept.ids[:20], 0) == Known(kept, 19)


def test_the_longest_common_beginning_counts_and_a_short_one_does_not(metrics: Metrics) -> None:
    cache = PromptCache(10_000, metrics)
    near, far = prompt(numbers(0, 25) + [99] * 5), prompt(numbers(0, 20) + [98] * 10)
    for kept in (near, far):
        cache.keep(kept)
    assert cache.find(numbers(0, 40), 0) == Known(near, 25)
    assert cache.find(numbers(0, MIN_SHARED - 1) + [97] * 20, 0) is None
    assert cache.find(numbers(500, 40), 0) is None


def test_the_longest_unused_goes_first(metrics: Metrics) -> None:
    cache = PromptCache(2 * 30 * BYTES_PER_TOKEN, metrics)
    first, second, third = (prompt(numbers(1000 * k, 30)) for k in range(3))
    cache.keep(first)
    cache.keep(second)
    assert cache.find([*first.ids, 7], 30) is not None
    cache.keep(third)
    assert cache.find([*second.ids, 7], 30) is None
    assert cache.find([*first.ids, 7], 30) == Known(first, 30)
    assert cache.find([*third.ids, 7], 30) == Known(third, 30)


def test_what_is_larger_than_all_of_it_is_not_kept(metrics: Metrics) -> None:
    cache, large = PromptCache(30 * BYTES_PER_TOKEN, metrics), prompt(numbers(0, 31))
    assert cache.has_room_for(31)  # it does not know yet how large a token is
    cache.keep(large)
    assert cache.find([*large.ids, 7], 31) is None
    assert cache.has_room_for(30)
    assert not cache.has_room_for(31)


def test_without_bytes_it_is_off(metrics: Metrics) -> None:
    assert not PromptCache(0, metrics).enabled
    assert not PromptCache(0, metrics).has_room_for(1)


def test_hits_and_misses_are_counted_where_there_is_a_prompt(metrics: Metrics) -> None:
    cache, kept = PromptCache(10_000, metrics), prompt(numbers(0, 30))
    row = [*kept.ids, 7]
    cache.find(row, 30)
    cache.keep(kept)
    cache.find(row, 30)
    cache.find(numbers(0, 20) + [99] * 20, 30)  # only a part of its prompt is there
    cache.find(row, 0)
    assert sample(metrics, "prompt_cache_total", outcome="miss") == 2
    assert sample(metrics, "prompt_cache_total", outcome="hit") == 1


def test_the_same_prompt_is_kept_once(metrics: Metrics) -> None:
    cache, kept = PromptCache(2 * 30 * BYTES_PER_TOKEN, metrics), prompt(numbers(0, 30))
    other = prompt(numbers(1000, 30))
    for each in (other, kept, kept, kept):
        cache.keep(each)
    assert cache.find([*other.ids, 7], 30) == Known(other, 30)


def test_room_is_made_by_putting_out_the_longest_unused_but_not_under_those_who_compute(
    metrics: Metrics,
) -> None:
    cache, cpu = PromptCache(3 * 1024, metrics), torch.device("cpu")

    def keep(start: int) -> KeptPrompt:
        room = cache.room(1024, cpu)
        assert room is not None
        copy = room.put(torch.full((30, 1, 1), float(start)))
        kept = KeptPrompt(tuple(numbers(start, 30)), {0: (copy, copy)}, room)
        cache.keep(kept)
        return kept

    used = Known(keep(1000), 30)
    for start in range(2000, 7000, 1000):
        keep(start)
    assert cache.find(numbers(1000, 40), 30) is None
    assert cache.find(numbers(6000, 40), 30) is not None
    assert used.layer(0)[0].unique().tolist() == [1000.0]  # it was put out, but nobody wrote over it
    assert cache.room(3 * 1024, cpu) is None
    del used
    assert cache.room(3 * 1024, cpu) is not None
    assert cache.room(3 * 1024 + 1, cpu) is None
