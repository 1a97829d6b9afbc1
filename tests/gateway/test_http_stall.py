"""Progress is 64 KiB in the time given, or all that waits."""

from gateway.http_stall import STALL_BYTES, Stall


def test_the_time_begins_with_the_first_look_and_is_over_at_its_end() -> None:
    stall = Stall(60)
    assert not stall.is_over(10, now=5)
    assert not stall.is_over(10, now=64.9)
    assert stall.is_over(10, now=65)


def test_64_kib_are_progress_and_a_byte_less_is_none() -> None:
    for taken, is_over in ((STALL_BYTES, False), (STALL_BYTES - 1, True)):
        stall = Stall(60)
        stall.is_over(3 * STALL_BYTES, now=0)
        stall.is_over(3 * STALL_BYTES - taken, now=30)
        assert stall.is_over(3 * STALL_BYTES - taken, now=60) is is_over


def test_a_cleared_watch_begins_anew() -> None:
    stall = Stall(60)
    stall.is_over(10, now=0)
    stall.clear()
    assert not stall.is_over(10, now=60)
    assert stall.is_over(10, now=120)
