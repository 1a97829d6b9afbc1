"""Allowances: GCRA against a token bucket that is counted by hand, and OpenAI's way to write durations."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.allowance import DAY_S, MINUTE_S, Account, Allowance, Bucket, Rate, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0004, "1ms"),
        (0.0205, "21ms"),
        (0.021, "21ms"),
        (0.999, "999ms"),
        (0.9991, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360.0, "6m0s"),
        (3661.0, "1h1m1s"),
        (86_400.0, "24h0m0s"),
        (72.1234, "1m12.124s"),
    ],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_the_limits_that_there_are_get_headers() -> None:
    assert Rate().headers() == {}
    assert Rate(limit_tokens=10, remaining_tokens=0, reset_tokens=0.5).headers() == {
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "500ms",
    }


def test_a_bucket_by_hand() -> None:
    bucket = Bucket(MINUTE_S)
    assert (bucket.level(6, 100.0), bucket.reset_s(100.0), bucket.wait_s(6, 100.0)) == (6.0, 0.0, 0.0)
    bucket.take(6, 6, 100.0)  # one comes back each 10 s
    assert (bucket.level(6, 100.0), bucket.reset_s(100.0), bucket.wait_s(6, 100.0)) == (0.0, 60.0, 10.0)
    assert (bucket.level(6, 125.0), bucket.wait_s(6, 109.0), bucket.wait_s(6, 110.0)) == (2.5, 1.0, 0.0)
    bucket.give_back(1, 6)
    assert bucket.level(6, 125.0) == pytest.approx(3.5)
    bucket.take(10, 6, 125.0)
    assert (bucket.level(6, 125.0), bucket.wait_s(6, 125.0)) == pytest.approx((-6.5, 75.0))


def test_another_limit_keeps_the_share_that_is_used() -> None:
    bucket = Bucket(DAY_S)
    bucket.take(250, 1000, 0.0)
    assert bucket.level(1000, 0.0) == 750.0
    assert bucket.level(10, 0.0) == 7.5


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=30))
def test_it_is_a_token_bucket(limit: int, steps: list[tuple[int, int]]) -> None:
    """The textbook's bucket in exact fractions: filled by limit/60 a second up to limit, and emptied."""
    bucket, level, now = Bucket(MINUTE_S), Fraction(limit), 0
    for pause, amount in steps:
        now += pause
        level = min(Fraction(limit), level + Fraction(pause * limit, 60))
        assert bucket.level(limit, float(now)) == pytest.approx(float(level), abs=1e-6)
        expected = max(0.0, float((1 - level) * 60 / limit))
        assert bucket.wait_s(limit, float(now)) == pytest.approx(expected, abs=2e-6)
        bucket.take(amount, limit, float(now))
        level -= amount


def test_an_account_is_new_again_when_all_of_it_has_come_back() -> None:
    allowance = Allowance(requests_per_minute=60, tokens_per_day=86_400)
    account = Account()
    assert account.is_new(0.0)
    account.enter(allowance, 2, 0.0)
    assert not account.is_new(10.0), "its slots are held"
    account.leave(allowance, 2, 30, 10.0)
    assert not account.is_new(39.0)
    assert account.is_new(40.0)
    assert account.rate(allowance, 40.0) == Account().rate(allowance, 40.0)


def test_what_is_without_limit_is_not_counted() -> None:
    account = Account()
    account.enter(Allowance(), 5, 0.0)
    account.leave(Allowance(), 5, 10**9, 0.0)
    assert account.is_new(0.0)


@pytest.mark.parametrize("field", Allowance.__struct_fields__)
def test_a_limit_is_at_least_one(field: str) -> None:
    assert getattr(msgspec.convert({field: 1}, Allowance), field) == 1
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: 0}, Allowance)
