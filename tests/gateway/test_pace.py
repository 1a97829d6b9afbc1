"""A server's pace: ratios to the fastest, calls that were cut short, and news that grows old."""

from gateway.pace import Pace, compare


def paces(*seconds: float) -> list[Pace]:
    """Servers that have each answered once, at time 0."""
    made = [Pace() for _ in seconds]
    for pace, took in zip(made, seconds, strict=True):
        pace.add(took, 0.0, whole=True)
    compare(made)
    return made


def test_slowness_is_the_ratio_to_the_fastest_from_4_on() -> None:
    assert [round(pace.slowness(0.0), 6) for pace in paces(2.0, 0.2, 0.7, 0.9)] == [10, 1, 1, 4.5]


def test_one_server_is_never_slow() -> None:
    assert paces(1000.0)[0].slowness(0.0) == 1


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
    assert slow.slowness(100.0) == 1
