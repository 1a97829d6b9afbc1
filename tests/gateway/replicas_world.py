"""Replicas with a clock that the test moves and an observer that remembers."""

from collections import Counter

from gateway.replicas import Outcome, Replica, Replicas

NAMES = "abcdefgh"


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
        names = NAMES[:count]
        self.replicas = Replicas({name: name.upper() for name in names}, clock=self.clock, observer=self.log)

    def __getitem__(self, name: str) -> Replica[str]:
        return self.replicas.all[NAMES.index(name)]

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
