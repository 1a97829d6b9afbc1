"""Whatever happens to replicas in whatever order: nothing is lost count of, and the promises hold."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.replicas import FAILURES, Lease, Outcome
from tests.gateway.replicas_world import World


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
