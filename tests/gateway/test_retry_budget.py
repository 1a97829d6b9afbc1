"""Retries are a share of the requests."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.retry_budget import RetryBudget


def test_of_the_first_1000_requests_that_all_fail_a_tenth_is_retried() -> None:
    budget, retries = RetryBudget(), 0
    for _ in range(1000):
        budget.deposit()
        retries += budget.spend()
    assert 99 <= retries <= 100


def test_no_more_than_the_cap_is_saved() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.deposit()
    assert sum(budget.spend() for _ in range(1000)) == 200


@given(
    events=st.lists(st.booleans(), max_size=300),
    burst=st.integers(0, 30),
    share=st.floats(0, 1),
    cap=st.integers(0, 50),
)
def test_retries_never_exceed_burst_and_share(events: list[bool], burst: int, share: float, cap: int) -> None:
    budget, requests, retries = RetryBudget(burst, share, cap), 0, 0
    for is_request in events:
        if is_request:
            budget.deposit()
            requests += 1
        else:
            retries += budget.spend()
        assert retries <= burst + share * requests + 1e-9
