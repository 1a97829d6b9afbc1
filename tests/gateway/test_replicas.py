"""Who is left out and for how long, what probes change, and what is tried again."""

from collections import Counter

import pytest

from gateway.replicas import Outcome, Replica, Replicas
from gateway.retry_budget import RetryBudget
from tests.gateway.replicas_world import World

GONE = [Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.ERROR, Outcome.TIMEOUT]


@pytest.mark.parametrize("outcome", GONE)
def test_the_fifth_failure_in_a_row_ejects_for_30_s_and_then_one_try_decides(outcome: Outcome) -> None:
    world = World(2)
    for _ in range(4):
        world.call("a", outcome)
    assert world.out() == ""
    world.call("a", outcome)
    assert world.out() == "a"
    world.clock.now += 29.9
    assert world.asked() == {"b": 20}
    world.clock.now += 0.2
    with world.replicas.using(world["b"], 3):
        assert world.replicas.pick().name == "a"
        with world.replicas.using(world["a"]) as attempt:
            assert world.asked() == {"b": 20}
            attempt.note(Outcome.OK)
            assert world.out() == ""
    assert world.asked() == {"a": 10, "b": 10}


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.REFUSED])
def test_a_success_or_a_refusal_ends_a_row_of_failures(outcome: Outcome) -> None:
    world = World(2)
    for _ in range(5):
        world.fail("a", 4)
        world.call("a", outcome)
    assert world.out() == ""


def test_cancelled_calls_and_overload_are_no_failures() -> None:
    world = World(2)
    for _ in range(50):
        world.call("a", Outcome.OVERLOADED)
        with world.replicas.using(world["a"]):
            pass
    assert world.out() == ""
    assert world["a"].failures == 0


def test_each_ejection_in_a_row_is_30_s_longer_up_to_300_s() -> None:
    world = World(2)
    world.fail("a")
    for times in range(1, 13):
        seconds = min(30 * times, 300)
        world.clock.now += seconds - 0.1
        assert world.asked() == {"b": 20}
        world.clock.now += 0.2
        world.call("a", Outcome.TIMEOUT)
        assert world.out() == "a"
    world.clock.now += 301
    world.call("a", Outcome.OK)
    world.fail("a")
    world.clock.now += 30.1
    assert world.asked(2) == {"a": 1, "b": 1}


def test_calls_that_fail_after_the_ejection_do_not_prolong_it() -> None:
    world = World(2)
    open_calls = [world.replicas.using(world["a"]).__enter__() for _ in range(100)]
    for lease in open_calls:
        lease.note(Outcome.BROKEN)
        lease.__exit__(None, None, None)
    world.clock.now += 30.1
    assert "a" in world.asked()


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_at_most_half_are_ejected_and_work_still_goes_somewhere(count: int, most: int) -> None:
    world = World(count)
    for replica in world.replicas.all:
        world.fail(replica.name, 10)
    assert len(world.out()) == most
    assert not set(world.asked()) & set(world.out())


def test_a_dead_replica_costs_at_most_5_failed_tries_in_30_s() -> None:
    world = World(3)
    failed = []
    for _ in range(3000):
        world.clock.now += 0.01
        replica = world.replicas.pick()
        world.call(replica.name, Outcome.UNREACHABLE if replica.name == "a" else Outcome.OK)
        failed += [replica] * (replica.name == "a")
    assert 1 <= len(failed) <= 5


def test_a_dead_replica_that_may_not_be_ejected_is_shunned_all_the_same() -> None:
    world = World(3)
    world.fail("a")
    failures: Counter[str] = Counter()
    for _ in range(3000):
        world.clock.now += 0.01
        replica = world.replicas.pick()
        is_dead = replica.name in "ab"
        failures[replica.name] += is_dead
        world.call(replica.name, Outcome.BROKEN if is_dead else Outcome.OK)
    assert world.out() == "a"
    assert 1 <= failures["b"] <= 5


def test_answers_that_break_off_add_up_although_each_began_well() -> None:
    world = World(2)
    for _ in range(5):
        world.call("a", Outcome.OK, Outcome.BROKEN)
    assert world.out() == "a"


def test_an_overloaded_replica_rests_unless_all_are() -> None:
    world = World(2)
    world.call("a", Outcome.OVERLOADED)
    assert world.asked() == {"b": 20}
    world.call("b", Outcome.OVERLOADED)
    assert world.asked() == {"a": 10, "b": 10}
    world.clock.now += 0.6
    assert world.asked() == {"a": 10, "b": 10}


# Probes.


def test_a_probe_takes_out_and_brings_back() -> None:
    world = World(2)
    world.replicas.probed(world["a"], healthy=False)
    assert world.out() == "a"
    for _ in range(40):
        world.clock.now += 1
        world.replicas.probed(world["a"], healthy=False)
        assert world.asked() == {"b": 20}
    world.replicas.probed(world["a"], healthy=True)
    assert world.out() == ""
    assert world.asked() == {"a": 10, "b": 10}


def test_probes_do_not_take_out_the_last_one() -> None:
    world = World(2)
    for replica in world.replicas.all:
        world.replicas.probed(replica, healthy=False)
    assert world.out() == "a"
    assert world.asked() == {"b": 20}


def test_a_good_probe_does_not_excuse_failed_requests() -> None:
    world = World(2)
    world.fail("a")
    world.replicas.probed(world["a"], healthy=True)
    assert world.out() == "a"


def test_a_good_probe_excuses_a_refused_connection_once_until_a_request_succeeds() -> None:
    world = World(2)
    for _ in range(5):
        world.call("a", Outcome.UNREACHABLE)
    world.replicas.probed(world["a"], healthy=True)
    assert world.out() == ""
    for _ in range(5):
        world.call("a", Outcome.UNREACHABLE)
    world.replicas.probed(world["a"], healthy=True)
    assert world.out() == "a"


def test_good_probes_leave_a_healthy_replica_alone() -> None:
    world = World(2)
    world.replicas.probed(world["a"], healthy=True)
    assert world.log.lines == []


# Retries.


def test_a_retry_goes_to_another_replica_that_is_well() -> None:
    world = World(3)
    world.fail("b", 1)
    assert world.replicas.retry(world["a"], Outcome.BROKEN) is world["c"]
    assert world.log.lines[-1] == ("retried", "broken")
    world.fail("c", 1)
    assert world.replicas.retry(world["a"], Outcome.BROKEN) is None


def test_there_is_no_other_replica_to_retry_on() -> None:
    world = World(1)
    assert world.replicas.retry(world["a"], Outcome.BROKEN) is None


def test_a_retry_that_finds_nobody_spends_nothing() -> None:
    world = World(2)
    world.fail("b", 1)
    for _ in range(50):
        assert world.replicas.retry(world["a"], Outcome.ERROR) is None
    world.call("b", Outcome.OK)
    assert sum(world.replicas.retry(world["a"], Outcome.ERROR) is not None for _ in range(50)) == 20


def test_requests_that_a_dead_replica_did_not_even_get_are_all_retried() -> None:
    world = World(2)
    calls = [world.replicas.using(world.replicas.pick()).__enter__() for _ in range(200)]
    dead = [lease for lease in calls if lease.replica is world["a"]]
    assert len(dead) == 100
    for lease in dead:
        lease.note(Outcome.UNREACHABLE)
        assert world.replicas.retry(lease.replica, Outcome.UNREACHABLE) is world["b"]
    for lease in calls:
        lease.__exit__(None, None, None)


def test_amplification_over_1000_requests_that_are_all_refused_is_at_most_1_1() -> None:
    world, calls = World(2), 0
    for _ in range(1000):
        world.clock.now += 1
        replica: Replica[str] | None = world.replicas.pick()
        while replica is not None:
            calls += 1
            world.call(replica.name, Outcome.OVERLOADED)
            world.clock.now += 1
            replica = world.replicas.retry(replica, Outcome.OVERLOADED)
    assert 1050 <= calls <= 1100


def test_work_lost_in_the_middle_is_repeated_within_the_same_budget() -> None:
    world = World(2)
    assert sum(world.replicas.may_repeat() for _ in range(100)) == 20
    world = World(1)
    world.fail("a", 1)
    assert not world.replicas.may_repeat()


# What is reported.


def test_the_observer_hears_of_work_outcomes_and_ejections() -> None:
    world = World(2)
    with pytest.raises(ZeroDivisionError), world.replicas.using(world["a"], 7):
        raise ZeroDivisionError
    world.fail("a")
    world.replicas.close()
    assert world.log.lines[:2] == [("took", "a", 7), ("gave back", "a", 7, "cancelled")]
    assert world.log.lines[-4:] == [
        ("took", "a", 1),
        ("ejected", "a", True),
        ("gave back", "a", 1, "broken"),
        ("ejected", "a", False),
    ]


def test_each_process_may_have_its_share_of_the_retries() -> None:
    replicas = Replicas({"a": 1, "b": 2}, budget=RetryBudget(burst=5))
    first = replicas.all[0]
    assert sum(replicas.retry(first, Outcome.ERROR) is not None for _ in range(20)) == 5
