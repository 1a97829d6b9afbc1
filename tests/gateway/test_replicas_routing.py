"""Where work goes among replicas that are well, and how soon a slow one is left alone."""

import heapq
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from gateway.replicas import Lease, Outcome, Replicas
from tests.gateway.replicas_world import NAMES, World


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
        took = seconds[NAMES.index(replica.name)] * chance.lognormvariate(0, 0.5)
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
