"""What disturbs a run is read from the system and said in words."""

import os

from loadtests.noise import Watch, busy_share, stolen_s, waited_s


def test_the_signs_of_a_late_generator() -> None:
    watch = Watch(os.getpid())
    late = "the generator was up to 6.0 ms late (p99)"
    assert late in watch.signs(0.006)
    assert late not in watch.signs(0.004)


def test_one_core_for_both_is_a_sign() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert "generator and server share one core" in Watch(os.getpid()).signs()
    finally:
        os.sched_setaffinity(0, before)


def test_what_the_system_counts_grows_and_a_process_that_is_gone_is_none() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert 0 <= stolen_s(cores) <= stolen_s(cores)
    assert stolen_s([]) == 0
    first = waited_s(os.getpid())
    assert first <= waited_s(os.getpid())
    assert waited_s(2**22 + 1) == 0


def test_the_share_of_busy_cores_is_a_share() -> None:
    assert 0 <= busy_share(0.05) <= 1
