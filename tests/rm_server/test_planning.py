"""Windows of the queue are cut into passes that stay within the budget and waste little."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rm_server.packing import MIN_SHARED, grow
from rm_server.planning import FORWARD_OVERHEAD_TOKENS, MAX_ROW_PADDING, plan_packed, plan_padded

PROMPT, OTHER = list(range(40)), list(range(1, 41))


class _Row:
    """As much of a queued row as planning looks at."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids


def of_length(length: int) -> _Row:
    return _Row([0] * length)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 600))
def test_padded_batches_hold_every_row_once_within_the_budgets(lengths: list[int], budget: int) -> None:
    rows = [of_length(length) for length in lengths]
    batches = plan_padded(rows, budget)
    assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch)
    for batch in batches:
        sizes = [len(row.ids) for row in batch]
        padded, real = max(sizes) * len(sizes), sum(sizes)
        assert len(batch) == 1 or padded <= budget
        assert padded - real <= FORWARD_OVERHEAD_TOKENS + MAX_ROW_PADDING * real


def test_much_shorter_rows_go_apart_where_they_are_padded() -> None:
    # 300 and 290 waste 10 tokens together; a row of 100 beside them would waste 200.
    batches = plan_padded([of_length(100), of_length(300), of_length(100), of_length(290)], 4096)
    assert [[len(row.ids) for row in batch] for batch in batches] == [[300, 290], [100, 100]]


beginnings = st.sampled_from([[], PROMPT, PROMPT[:30], OTHER])
texts = st.tuples(beginnings, st.lists(st.integers(50, 60), min_size=1, max_size=30)).map(
    lambda parts: parts[0] + parts[1]
)


@given(st.lists(texts, min_size=1, max_size=30), st.integers(1, 300))
def test_packed_batches_hold_every_row_once_within_the_budget(texts: list[list[int]], budget: int) -> None:
    rows = [_Row(ids) for ids in texts]
    batches = plan_packed(rows, budget)
    assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch)
    for batch in batches:
        ids = [row.ids for row in batch]
        computed = sum(len(chunk.ids) for chunk in grow(ids, range(len(ids))).chunks)
        shared_with_the_batch_before = len(batch[0].ids)
        too_little_to_share = (MIN_SHARED - 1) * len(batch)
        assert computed <= budget + shared_with_the_batch_before + too_little_to_share


def test_a_prompt_counts_once_in_a_packed_batch() -> None:
    # 40 tokens of prompt and four answers of 10 are 80; four full texts would be 200.
    rows = [_Row(PROMPT + [100 + k] * 10) for k in range(4)]
    assert [len(batch) for batch in plan_packed(rows, 80)] == [4]
    assert [len(batch) for batch in plan_packed(rows, 79)] == [3, 1]


def test_rows_that_begin_alike_share_a_packed_batch() -> None:
    rows = [_Row([*beginning, k]) for k in (7, 8) for beginning in (PROMPT, OTHER)]
    batches = plan_packed(rows, 42)
    assert [[row.ids[0] for row in batch] for batch in batches] == [[0, 0], [1, 1]]
