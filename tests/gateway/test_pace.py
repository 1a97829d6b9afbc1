"""A server's pace: ratios to the fastest, what chance explains, calls cut short, and news that grows old."""

import math
import random

import pytest

from gateway.pace import Pace, compare


def paces(*seconds: float, calls: int = 8) -> list[Pace]:
    """Servers that have each answered so many equal calls, at time 0."""
    made = [Pace() for _ in seconds]
    for pace, took in zip(made, seconds, strict=True):
        for _ in range(calls):
            pace.add(took, 0.0, whole=True)
    compare(made)
    return made


def test_slowness_is_the_ratio_to_the_fastest_from_4_on() -> None:
    assert [round(pace.slowness(0.0), 6) for pace in paces(2.0, 0.2, 0.7, 0.9)] == [10, 1, 1, 4.5]


def test_one_server_is_never_slow() -> None:
    assert paces(1000.0)[0].slowness(0.0) == 1


def test_two_calls_prove_nothing() -> None:
    assert [pace.slowness(0.0) for pace in paces(10.0, 1.0, calls=2)] == [1, 1]


def test_the_first_calls_count_the_same_and_the_mean_is_the_geometric_one() -> None:
    pace = Pace()
    for number, seconds in enumerate((1.0, 4.0, 16.0), start=1):
        pace.add(seconds, 0.0, whole=True)
        assert pace.doubt == pytest.approx(1 / number)
    assert pace.mean == pytest.approx(math.log(4.0))


def test_a_difference_within_the_spread_of_the_calls_is_chance() -> None:
    slow, fast = Pace(), Pace()
    for number in range(100):
        spread = 20.0 if number % 2 else 1 / 20.0
        fast.add(1.0 * spread, 0.0, whole=True)
        slow.add(8.0 * spread, 0.0, whole=True)
    compare([slow, fast])
    assert slow.slowness(0.0) == 1


def test_equal_servers_are_hardly_ever_called_slow_however_much_calls_differ() -> None:
    chance, pair, slow = random.Random(5), (Pace(), Pace()), 0
    for number in range(4000):
        pair[number % 2].add(chance.lognormvariate(0, 2), number / 10, whole=True)
        compare(pair)
        slow += any(pace.slowness(number / 10) > 1 for pace in pair)
    assert slow < 4000 * 0.05


def test_half_of_it_is_forgotten_in_10_s_until_it_is_below_4() -> None:
    slow, _ = paces(20.0, 1.0)
    assert [round(slow.slowness(at), 6) for at in (0, 10, 20, 30)] == [20, 10, 5, 1]


def test_one_long_answer_does_not_make_a_server_slow() -> None:
    one, other = paces(1.0, 1.0)
    one.add(1000.0, 0.0, whole=True)  # weighs 1/8: 1000 ** (1/8) = 2.4
    compare([one, other])
    assert one.slowness(0.0) == 1


def test_slow_calls_that_were_cut_short_count_and_quick_ones_do_not() -> None:
    pace, other = paces(1.0, 1.0)
    assert not pace.add(0.5, 0.0, whole=False)
    for _ in range(30):
        assert pace.add(10.0, 0.0, whole=False)
    compare([pace, other])
    assert 9 < pace.slowness(0.0) < 10


def test_a_call_cut_short_is_no_first_impression() -> None:
    pace = Pace()
    assert not pace.add(0.001, 0.0, whole=False)
    assert pace.mean is None


def test_news_after_a_long_silence_replaces_the_old() -> None:
    slow, fast = paces(10.0, 1.0)
    slow.add(1.0, 100.0, whole=True)
    compare([slow, fast])
    assert slow.mean == pytest.approx(0.0, abs=0.01)
    assert slow.slowness(100.0) == 1
