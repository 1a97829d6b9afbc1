"""Where work goes, who is left out and for how long, and that nothing is lost count of."""

import heapq
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.replicas import FAILURES, Lease, Outcome, Replica, Replicas
from gateway.retry_budget import RetryBudget

GONE = [Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.ERROR, Outcome.TIMEOUT]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def took(self, replica: str, work: int) -> None:
        self.lines.append(("took", replica, work))

    def gave_back(self, replica: str, work: int, outcome: str) -> None:
        self.lines.append(("gave back", replica, work, outcome))

    def ejected(self, replica: str, is_out: bool) -> None:
        self.lines.append(("ejected", replica, is_out))

    def retried(self, reason: str) -> None:
        self.lines.append(("retried", reason))


class World:
    """Some replicas called a, b, ... and their clock."""

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.log = Log()
        names = "abcdefgh"[:count]
        self.replicas = Replicas({name: name.upper() for name in names}, clock=self.clock, observer=self.log)

    def __getitem__(self, name: str) -> Replica[str]:
        return self.replicas.all["abcdefgh".index(name)]

    def call(self, name: str, outcome: Outcome, *more: Outcome) -> None:
        """A call to one replica, and how it went."""
        with self.replicas.using(self[name]) as lease:
            for noted in (outcome, *more):
                lease.note(noted)

    def fail(self, name: str, times: int = 5) -> None:
        """Break the server behind one replica."""
        for _ in range(times):
            self.call(name, Outcome.BROKEN)

    def asked(self, calls: int = 20) -> Counter[str]:
        """Who gets the next calls, one after the other, without any being done."""
        return Counter(self.replicas.pick().name for _ in range(calls))

    def out(self) -> str:
        return "".join(replica.name for replica in self.replicas.all if replica.ejected)


# Routing.


def test_work_goes_where_the_least_is_outstanding() -> None:
    world = World(3)
    with world.replicas.using(world["a"], 8), world.replicas.using(world["b"], 1):
        assert world.replicas.pick(4).name == "c"
        with world.replicas.using(world["c"], 2):
            assert world.replicas.pick(4).name == "b"


def test_without_affinity_ties_go_around() -> None:
    assert World(3).asked(30) == {"a": 10, "b": 10, "c": 10}


def test_with_affinity_a_tie_goes_to_the_prompts_home() -> None:
    homes = Counter(World(4).replicas.pick(1, b"prompt %d" % number).name for number in range(1000))
    assert set(homes) == set("abcd")
    assert all(190 < count < 310 for count in homes.values())
    assert len({World(4).replicas.pick(1, b"the same").name for _ in range(20)}) == 1


def test_prompts_keep_their_home_when_another_replica_leaves() -> None:
    prompts = [b"prompt %d" % number for number in range(300)]
    world = World(4)
    before = {prompt: world.replicas.pick(1, prompt).name for prompt in prompts}
    world.fail("b")
    after = {prompt: world.replicas.pick(1, prompt).name for prompt in prompts}
    assert "b" not in after.values()
    assert all(after[prompt] == home for prompt, home in before.items() if home != "b")


def test_affinity_does_not_outweigh_work() -> None:
    world = World(2)
    home = world.replicas.pick(1, b"prompt")
    with world.replicas.using(home):
        assert world.replicas.pick(1, b"prompt") is not home


def test_no_replica_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no replica"):
        Replicas({})


def simulated_share(seconds: Sequence[float], *, every_s: float, callers: int) -> float:
    """The first replica's share of the calls after 5 s: arrivals with exponential gaps, at most `callers` at
    once; replica i takes `seconds[i]` at the median (lognormal)."""
    chance, world = random.Random(3), World(len(seconds))
    ends: list[tuple[float, int, Lease[str]]] = []
    counts: Counter[str] = Counter()
    start, number = world.clock.now, 0
    while world.clock.now < start + 65:
        arrival = world.clock.now + chance.expovariate(1 / every_s)
        while ends and (ends[0][0] <= arrival or len(ends) >= callers):
            world.clock.now, _, lease = heapq.heappop(ends)
            lease.note(Outcome.OK)
            lease.__exit__(None, None, None)
        world.clock.now = max(world.clock.now, arrival)
        replica = world.replicas.pick(1, b"prompt %d" % number)
        counts[replica.name] += world.clock.now > start + 5
        took = seconds["abcdefgh".index(replica.name)] * chance.lognormvariate(0, 0.5)
        heapq.heappush(ends, (world.clock.now + took, number, world.replicas.using(replica).__enter__()))
        number += 1
    return counts["a"] / counts.total()


@pytest.mark.parametrize(("every_s", "callers"), [(0.01, 16), (0.05, 100), (0.2, 100), (1.0, 100)])
@pytest.mark.parametrize("count", [2, 3])
def test_a_replica_10_times_slower_loses_over_80_percent_of_its_work(
    every_s: float, callers: int, count: int
) -> None:
    seconds = [2.0, *[0.2] * (count - 1)]
    assert simulated_share(seconds, every_s=every_s, callers=callers) < 0.2 / count


@pytest.mark.parametrize("every_s", [0.01, 0.2])
def test_equal_replicas_share_equally(every_s: float) -> None:
    assert simulated_share([0.2, 0.2], every_s=every_s, callers=100) == pytest.approx(0.5, abs=0.05)


def test_calls_without_work_say_nothing_about_pace() -> None:
    world = World(2)
    for name, seconds, work in [("a", 0.001, 0), ("a", 1.0, 1), ("b", 1.0, 1)] * 30:
        with world.replicas.using(world[name], work) as lease:
            world.clock.now += seconds
            lease.note(Outcome.OK)
    assert [replica.pace.slowness(world.clock.now) for replica in world.replicas.all] == [1, 1]
    assert world["a"].pace.mean == pytest.approx(world["b"].pace.mean)


# Failure.


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


class Rules(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Lease[str]] = []
        self.requests = 0
        self.retries = 0

    @rule(count=st.integers(1, 5))
    @precondition(lambda self: not hasattr(self, "world"))
    def begin(self, count: int) -> None:
        self.world = World(count)

    @rule(work=st.integers(1, 64), affinity=st.none() | st.binary(max_size=4))
    @precondition(lambda self: hasattr(self, "world"))
    def ask(self, work: int, affinity: bytes | None) -> None:
        replica = self.world.replicas.pick(work, affinity)
        self.requests += 1
        assert not (replica.ejected and self.world.clock.now < replica.pause_until)
        assert not (replica.ejected and replica.trying)
        self.open.append(self.world.replicas.using(replica, work).__enter__())

    @rule(data=st.data(), outcome=st.sampled_from(Outcome), ends=st.booleans())
    @precondition(lambda self: self.open)
    def hear(self, data: st.DataObject, outcome: Outcome, ends: bool) -> None:
        lease = data.draw(st.sampled_from(self.open))
        if outcome is not Outcome.CANCELLED:
            lease.note(outcome)
        if outcome in FAILURES and self.world.replicas.retry(lease.replica, outcome) is not None:
            self.retries += outcome is not Outcome.UNREACHABLE
        if ends:
            self.open.remove(lease)
            lease.__exit__(None, None, None)

    @rule(seconds=st.sampled_from([0.001, 0.5, 1, 5, 30, 300]))
    @precondition(lambda self: hasattr(self, "world"))
    def wait(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @rule(data=st.data(), healthy=st.booleans())
    @precondition(lambda self: hasattr(self, "world"))
    def probe(self, data: st.DataObject, healthy: bool) -> None:
        self.world.replicas.probed(data.draw(st.sampled_from(self.world.replicas.all)), healthy)

    @invariant()
    @precondition(lambda self: hasattr(self, "world"))
    def nothing_is_lost_count_of(self) -> None:
        for replica in self.world.replicas.all:
            mine = [lease for lease in self.open if lease.replica is replica]
            assert replica.outstanding == sum(lease.work for lease in mine)
            assert 0 <= replica.trying <= len(mine)
        assert len(self.world.out()) <= len(self.world.replicas.all) // 2
        assert self.retries <= 20 + 0.08 * self.requests

    def teardown(self) -> None:
        for lease in self.open:
            lease.__exit__(None, None, None)
        self.open = []
        if hasattr(self, "world"):
            self.nothing_is_lost_count_of()


TestRules = Rules.TestCase
TestRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_each_process_may_have_its_share_of_the_retries() -> None:
    replicas = Replicas({"a": 1, "b": 2}, budget=RetryBudget(burst=5))
    first = replicas.all[0]
    assert sum(replicas.retry(first, Outcome.ERROR) is not None for _ in range(20)) == 5
