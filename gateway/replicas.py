"""Several servers of one kind: which of them takes a piece of work, and which had better not.

- Work goes where the least is outstanding. A tie, usual on idle machines, goes to the server that has most
  likely seen the prompt (rendezvous hashing of `affinity`), without affinity to the one asked longest ago.
- A server that fails gets no work for 1 s, then one try; each further failure doubles the pause. The fifth in
  a row ejects it, for 30 s times the ejections so far, at most 300 s; after that one try decides. A success
  forgives everything. At most half of the servers are ejected, and where all fail, all that are not ejected
  are tried.
- A server that is overloaded gets no work for half a second, if another one can take it.
- A server that takes 4 times as long as the fastest, or longer, counts as that much fuller while the news is
  fresh (`Pace`). Least outstanding work alone sees a slow server only under load. Work of 0 units, such as a
  list of models, says nothing about pace.

Bookkeeping: no I/O, one event loop, the clock comes from outside. A call looks like this:

    with replicas.using(replicas.pick(work, affinity), work) as lease:
        ...  # lease.replica.client is whom to ask
        lease.note(Outcome.OK)  # or what else came of it
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import blake2b
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from gateway.pace import Pace, compare
from gateway.retry_budget import RetryBudget

FAILURES_TO_EJECT = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
OVERLOAD_PAUSE_S = 0.5
EJECTION_S = 30.0
LONGEST_EJECTION_S = 300.0
PROBED_DOWN_S = 5.0
"""How long the word of a health probe holds; probes come more often than that."""

T = TypeVar("T")


class Outcome(StrEnum):
    """How a call to a server ended; the `outcome` label of its metric."""

    OK = "ok"
    REFUSED = "refused"
    """A 4xx: the server is well, the request is not."""
    OVERLOADED = "overloaded"
    """429 or 503: neither a failure nor a proof of health."""
    UNREACHABLE = "unreachable"
    """No connection, so that nothing was asked."""
    BROKEN = "broken"
    """The connection died, or what came was no answer."""
    ERROR = "error"
    """Any other 5xx."""
    TIMEOUT = "timeout"
    """Silence for too long."""
    CANCELLED = "cancelled"
    """The caller went away first."""


FAILURES = frozenset({Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.ERROR, Outcome.TIMEOUT})
_WELL = frozenset({Outcome.OK, Outcome.REFUSED})
_CUT_SHORT = frozenset({Outcome.OK, Outcome.CANCELLED, Outcome.TIMEOUT})


class Observer(Protocol):
    """Who wants to know, such as the metrics; `replica` is a name from the configuration."""

    def took(self, replica: str, work: int) -> None:
        """Work began."""

    def gave_back(self, replica: str, work: int, outcome: str) -> None:
        """Work ended."""

    def ejected(self, replica: str, is_out: bool) -> None:
        """The replica went out, or came back."""

    def retried(self, reason: str) -> None:
        """A call is made again elsewhere because of its outcome `reason`."""


class Replica(Generic[T]):
    """One of several servers, and what is known of it."""

    __slots__ = (
        "_hash",
        "client",
        "ejected",
        "ejections",
        "failures",
        "last_picked",
        "leases",
        "name",
        "outstanding",
        "pace",
        "pause_until",
        "revived",
        "trying",
        "unreachable",
    )

    def __init__(self, name: str, client: T) -> None:
        self.name = name
        self.client = client
        self.outstanding = 0
        self.failures = 0
        """In a row."""
        self.ejected = False
        self.ejections = 0
        """In a row."""
        self.pause_until = 0.0
        self.trying = 0
        """Calls under way that will tell whether it is well again."""
        self.unreachable = False
        """Down in a way that a health probe would see too."""
        self.revived = False
        """A probe brought it back, and no request has borne that out yet."""
        self.last_picked = 0
        self.leases: set[Lease[T]] = set()
        """Calls under way that end when a probe finds it down."""
        self.pace = Pace()
        self._hash = blake2b(name.encode(), digest_size=8)

    def rank(self, affinity: bytes) -> bytes:
        """Rendezvous hashing: the replica with the highest rank is the prompt's home, in every process."""
        mixed = self._hash.copy()
        mixed.update(affinity)
        return mixed.digest()

    def cost(self, work: int, now: float) -> float:
        """How full it would be with `work` more."""
        return (self.outstanding + work) * self.pace.slowness(now)


class Lease(Generic[T]):
    """A piece of work at a replica, as a context manager: it is given back however the block ends."""

    __slots__ = (
        "_before",
        "_is_try",
        "_outcome",
        "_replicas",
        "_start",
        "_waiting",
        "abandoned",
        "replica",
        "work",
    )

    def __init__(self, replicas: "Replicas[T]", replica: Replica[T], work: int) -> None:
        self.replica = replica
        self.work = work
        self._replicas = replicas
        self._outcome = Outcome.CANCELLED
        self._before = 0
        self._is_try = False
        self._start = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self.abandoned = False
        """A probe has found the replica down, and the task that waits for it was cancelled for that."""

    def wait(self) -> None:
        """This task waits for a whole answer, and need not wait for a replica that is down."""
        self._waiting = asyncio.current_task()
        self.replica.leases.add(self)

    def abandon(self) -> None:
        """The replica is down."""
        self.replica.leases.discard(self)
        if self._waiting is not None:
            self.abandoned = True
            self._waiting.cancel()

    def __enter__(self) -> Self:
        replica = self.replica
        self._start = self._replicas.clock()
        self._is_try = replica.failures > 0
        replica.trying += self._is_try
        replica.outstanding += self.work
        self._replicas.observer.took(replica.name, self.work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        replica = self.replica
        replica.leases.discard(self)
        self._end_try()
        replica.outstanding -= self.work
        if self.work and self._outcome in _CUT_SHORT:
            whole = kind is None and self._outcome is Outcome.OK
            self._replicas.timed(replica, self._replicas.clock() - self._start, whole=whole)
        self._replicas.observer.gave_back(replica.name, self.work, self._outcome)

    def note(self, outcome: Outcome) -> None:
        """How it goes: OK as soon as the first byte of a good answer is there. If it breaks off later, note
        that too: the last word counts, and the OK before it has forgiven nothing then."""
        self._outcome = outcome
        self._end_try()
        if outcome in _WELL:
            self._before = self.replica.failures
            self._replicas.forgive(self.replica)
        elif outcome in FAILURES:
            before, self._before = self._before, 0
            self._replicas.blame(self.replica, outcome, 1 + before)
        elif outcome is Outcome.OVERLOADED:
            self._replicas.rest(self.replica)

    def _end_try(self) -> None:
        self.replica.trying -= self._is_try
        self._is_try = False


class Replicas(Generic[T]):
    """All servers of one kind, by name."""

    def __init__(
        self,
        clients: Mapping[str, T],
        *,
        clock: Callable[[], float] = time.monotonic,
        budget: RetryBudget | None = None,
        observer: Observer | None = None,
    ) -> None:
        if not clients:
            raise ValueError("there is no replica")
        self.all = tuple(Replica(name, client) for name, client in clients.items())
        self.clock = clock
        self.observer = observer or Unobserved()
        self._budget = budget or RetryBudget()
        self._picks = 0

    def pick(self, work: int = 1, affinity: bytes | None = None) -> Replica[T]:
        """The server for `work` units, such as candidates or texts to judge; `affinity` is equal for prompts
        that begin alike."""
        self._budget.deposit()
        return self._best(self._open(), work, affinity)

    def retry(
        self, failed: Replica[T], reason: Outcome, work: int = 1, affinity: bytes | None = None
    ) -> Replica[T] | None:
        """Another server for work that `failed` did not do, if one is well and the budget allows it. A
        connection that was refused cost nobody anything: trying elsewhere is not taken from the budget."""
        others = [r for r in self._open() if r is not failed and not r.failures]
        if not others or not (reason is Outcome.UNREACHABLE or self._budget.spend()):
            return None
        self.observer.retried(reason)
        return self._best(others, work, affinity)

    def may_repeat(self) -> bool:
        """Whether work that was lost in the middle of an answer may be picked for again: somebody is well,
        and the budget allows it."""
        if not any(replica.failures == 0 for replica in self.all) or not self._budget.spend():
            return False
        self.observer.retried("lost")
        return True

    def using(self, replica: Replica[T], work: int = 1) -> Lease[T]:
        """`with replicas.using(replica, work) as lease:` around a call."""
        return Lease(self, replica, work)

    def probed(self, replica: Replica[T], healthy: bool) -> None:
        """The result of a health probe. It brings back only who was unreachable, and once: a server that
        answers its probes and fails its requests stays out for its time."""
        if not healthy:
            replica.revived = False
            replica.failures = max(replica.failures, FAILURES_TO_EJECT - 1)
            self.blame(replica, Outcome.UNREACHABLE, 1)
            replica.pause_until = max(replica.pause_until, self.clock() + PROBED_DOWN_S)
            for lease in tuple(replica.leases):
                lease.abandon()
        elif replica.unreachable:
            replica.revived = True
            self._return(replica)

    def close(self) -> None:
        """Nobody will be ejected here any more: for a configuration that is replaced."""
        for replica in self.all:
            self._return(replica)

    def forgive(self, replica: Replica[T]) -> None:
        """It answered as it should."""
        replica.revived = False
        replica.ejections = 0
        if replica.failures:
            self._return(replica)

    def blame(self, replica: Replica[T], outcome: Outcome, failures: int) -> None:
        """It failed, for the `failures`th time more in a row."""
        replica.failures += failures
        replica.unreachable |= outcome is Outcome.UNREACHABLE and not replica.revived
        now = self.clock()
        if replica.ejected and now < replica.pause_until:
            return  # calls from before the ejection; they are no news
        if replica.failures >= FAILURES_TO_EJECT and self._may_eject(replica):
            self._eject(replica, now)
        else:
            pause = FIRST_PAUSE_S * 2.0 ** min(replica.failures - 1, 10)
            replica.pause_until = now + min(pause, LONGEST_PAUSE_S)

    def rest(self, replica: Replica[T]) -> None:
        """It is overloaded. Refusing is quick, so that it would look the emptiest to the next request."""
        replica.pause_until = max(replica.pause_until, self.clock() + OVERLOAD_PAUSE_S)

    def timed(self, replica: Replica[T], seconds: float, *, whole: bool) -> None:
        """A call took so long; see Pace."""
        if replica.pace.add(seconds, self.clock(), whole=whole):
            compare([replica.pace for replica in self.all])

    def _open(self) -> list[Replica[T]]:
        """Who is well or due for a try; if nobody, who is only busy; if nobody, who is not ejected."""
        now = self.clock()
        return (
            [r for r in self.all if r.pause_until <= now and not (r.failures and r.trying)]
            or [r for r in self.all if not r.failures]
            or [r for r in self.all if not r.ejected]
        )

    def _best(self, among: list[Replica[T]], work: int, affinity: bytes | None) -> Replica[T]:
        now = self.clock()
        costs = [replica.cost(work, now) for replica in among]
        least = min(costs)
        best = _home([r for r, cost in zip(among, costs, strict=True) if cost == least], affinity)
        self._picks += 1
        best.last_picked = self._picks
        return best

    def _may_eject(self, replica: Replica[T]) -> bool:
        return replica.ejected or sum(other.ejected for other in self.all) < len(self.all) // 2

    def _eject(self, replica: Replica[T], now: float) -> None:
        replica.ejections += 1
        replica.pause_until = now + min(EJECTION_S * replica.ejections, LONGEST_EJECTION_S)
        replica.pace = Pace()
        if not replica.ejected:
            replica.ejected = True
            self.observer.ejected(replica.name, True)

    def _return(self, replica: Replica[T]) -> None:
        replica.failures = 0
        replica.unreachable = False
        replica.pause_until = 0.0
        if replica.ejected:
            replica.ejected = False
            self.observer.ejected(replica.name, False)


def _home(tied: list[Replica[T]], affinity: bytes | None) -> Replica[T]:
    if len(tied) == 1:
        return tied[0]
    if not affinity:
        return min(tied, key=lambda replica: replica.last_picked)
    return max(tied, key=lambda replica: replica.rank(affinity))


class Unobserved:
    """The observer where nobody wants to know."""

    def took(self, replica: str, work: int) -> None:
        """See Observer."""

    def gave_back(self, replica: str, work: int, outcome: str) -> None:
        """See Observer."""

    def ejected(self, replica: str, is_out: bool) -> None:
        """See Observer."""

    def retried(self, reason: str) -> None:
        """See Observer."""
