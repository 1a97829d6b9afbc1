"""A tree holds every row, shared beginnings once, and its chunks attend in groups that waste little."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rm_server.packing import MAX_COPIED_KEYS, MAX_PADDING, MIN_SHARED, Chunk, Tree, common_length, grow

PROMPT = list(range(100, 140))

# Few different tokens and repeated blocks, so that rows share much, little, or all.
blocks = st.sampled_from([[1] * 16, [2] * 17, [1] * 15, [3], [1, 2], PROMPT])
rows = st.lists(
    st.lists(blocks, min_size=1, max_size=5).map(lambda parts: [token for part in parts for token in part]),
    min_size=1,
    max_size=12,
)


def text(tree: Tree, row: int) -> list[int]:
    """What the chunks of a row say."""
    return [token for chunk in tree.path(tree.ends[row]) for token in tree.chunks[chunk].ids]


@given(rows)
def test_every_row_can_be_read_off_the_tree(rows: list[list[int]]) -> None:
    tree = grow(rows, range(len(rows)))
    assert [text(tree, row) for row in range(len(rows))] == rows
    for index, chunk in enumerate(tree.chunks):
        before = tree.path(chunk.parent)
        assert all(ancestor < index for ancestor in before)
        assert chunk.position == sum(len(tree.chunks[ancestor].ids) for ancestor in before)
        assert chunk.ids


@given(rows)
def test_what_neighbours_share_stands_once(rows: list[list[int]]) -> None:
    tree = grow(rows, range(len(rows)))
    computed = sum(len(chunk.ids) for chunk in tree.chunks)
    ordered = sorted(rows)
    shared = [common_length(a, b) for a, b in pairwise(ordered)]
    ideal = sum(map(len, rows)) - sum(shared)
    # What is left unshared is shorter than MIN_SHARED, for each row but the first.
    assert ideal <= computed <= ideal + (MIN_SHARED - 1) * len(shared)


@given(rows, st.integers(1, 40))
def test_what_is_known_stands_in_no_chunk(endings: list[list[int]], known: int) -> None:
    rows = [PROMPT[:known] + ending for ending in endings]
    tree = grow(rows, range(len(rows)), known)
    assert [PROMPT[:known] + text(tree, row) for row in range(len(rows))] == rows
    assert {chunk.position for chunk in tree.chunks if chunk.parent is None} == {known}


@given(rows)
def test_groups_hold_siblings_of_nearly_one_length(rows: list[list[int]]) -> None:
    tree = grow(rows, range(len(rows)))
    groups = tree.siblings()
    assert sorted(index for group in groups for index in group) == list(range(len(tree.chunks)))
    for group in groups:
        lengths = [len(tree.chunks[index].ids) for index in group]
        assert len({tree.chunks[index].parent for index in group}) == 1
        assert max(lengths) * len(lengths) <= (1 + MAX_PADDING) * sum(lengths)


def test_answers_to_a_long_prompt_attend_in_several_calls() -> None:
    # Each answer's call holds a copy of the prompt's keys.
    prompt = Chunk([0] * 3000, 0, None)
    tree = Tree([prompt, *[Chunk([k] * 10, 3000, 0) for k in range(5)]])
    assert 2 * 3010 <= MAX_COPIED_KEYS < 3 * 3010
    assert [len(group) for group in tree.siblings()] == [1, 2, 2, 1]


def test_a_chain_of_beginnings_needs_no_recursion() -> None:
    longest = [k % 251 for k in range(MIN_SHARED * 1100)]
    rows = [longest[: MIN_SHARED * k] for k in range(1, 1101)]
    tree = grow(rows, range(len(rows)))
    assert sum(len(chunk.ids) for chunk in tree.chunks) == len(longest)


def test_equal_rows_are_computed_once_where_that_is_worth_it() -> None:
    row = [5] * MIN_SHARED
    assert [chunk.ids for chunk in grow([row, row, [6]], range(3)).chunks] == [row, [6]]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_length(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common_length(one, other) == expected
