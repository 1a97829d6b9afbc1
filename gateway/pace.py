"""How long a server's calls take, as a running mean that forgets.

The mean is one of logarithms, so that one long answer weighs little; old news weighs less the older it is.
Work decides most about a call's time, so only a difference of 4 times is taken for the server's own.
"""

import math
from collections.abc import Iterable

MEMORY = 1 / 8
"""Weight of the newest duration."""
HALF_LIFE_S = 10.0
SLOW = 4.0
SHORTEST_S = 1e-4


class Pace:
    """One server's."""

    __slots__ = ("_slowness", "_when", "mean")

    def __init__(self) -> None:
        self.mean: float | None = None
        self._when = 0.0
        self._slowness = 1.0

    def add(self, seconds: float, now: float, *, whole: bool) -> bool:
        """A call took so long. One that was cut short (not `whole`) counts only if it was a long one already:
        a slow server's callers give up, and its slowness must not hide behind that. Whether it counted."""
        value = math.log(max(seconds, SHORTEST_S))
        if self.mean is None:
            if not whole:
                return False
            self.mean = value
        elif whole or value > self.mean:
            weight = max(MEMORY, 1 - 0.5 ** ((now - self._when) / HALF_LIFE_S))
            self.mean += weight * (value - self.mean)
        else:
            return False
        self._when = now
        return True

    def slowness(self, now: float) -> float:
        """How many times as long as the fastest server's calls, 1.0 below 4 times or when the news is old: a
        slow server gets a call from time to time that can show that it is slow no more."""
        if self._slowness == 1.0:
            return 1.0
        slowness = self._slowness * 0.5 ** ((now - self._when) / HALF_LIFE_S)
        return slowness if slowness >= SLOW else 1.0

    def compare(self, fastest: float) -> None:
        """The fastest server's mean has been found."""
        if self.mean is not None:
            ratio = math.exp(self.mean - fastest)
            self._slowness = ratio if ratio >= SLOW else 1.0


def compare(paces: Iterable[Pace]) -> None:
    """Tell each server's pace which is the fastest."""
    known = [(pace, pace.mean) for pace in paces if pace.mean is not None]
    if len(known) < 2:
        return
    fastest = min(mean for _, mean in known)
    for pace, _ in known:
        pace.compare(fastest)
