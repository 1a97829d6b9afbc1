"""How long a server's calls take, as a running mean that forgets, and whether that is remarkable.

The mean is one of logarithms, so that one long answer weighs little. Calls differ in the work that they ask
for, often by more than servers do: a server is called slow when its mean is 4 times the fastest server's, and
more than chance makes of the spread among the fastest server's own calls.
"""

import math
from collections.abc import Sequence

MEMORY = 1 / 8
"""Least weight of the newest duration."""
HALF_LIFE_S = 10.0
"""After so much silence what was known weighs half."""
SLOW = 4.0
SIGMAS = 3.0
"""How far beyond chance: below that, one comparison in 700 is wrong."""
FIRST_VARIANCE = 1.0
"""Of the logarithms, before any is known: two in three calls within a factor of 2.7."""
SHORTEST_S = 1e-4


class Pace:
    """One server's."""

    __slots__ = ("_slowness", "_when", "doubt", "mean", "variance")

    def __init__(self) -> None:
        self.mean: float | None = None
        self.variance = FIRST_VARIANCE
        """Of a call, not of the mean."""
        self.doubt = 1.0
        """The mean's variance is that of a call times this: 1/k after the first k calls."""
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
            self._learn(value - self.mean, now)
        else:
            return False
        self._when = now
        return True

    def slowness(self, now: float) -> float:
        """How many times as long as the fastest server's calls; 1.0 if that is not remarkable, or old news: a
        slow server gets a call from time to time that can show that it is slow no more."""
        if self._slowness == 1.0:
            return 1.0
        slowness = self._slowness * 0.5 ** ((now - self._when) / HALF_LIFE_S)
        return slowness if slowness >= SLOW else 1.0

    def compare(self, fastest: "Pace") -> None:
        """Which server is the fastest has been found out."""
        if self.mean is None or fastest.mean is None:
            return
        behind = self.mean - fastest.mean
        chance = SIGMAS * math.sqrt(fastest.variance * (self.doubt + fastest.doubt))
        self._slowness = math.exp(behind) if behind >= math.log(SLOW) and behind > chance else 1.0

    def _learn(self, difference: float, now: float) -> None:
        assert self.mean is not None
        silence = 1 - 0.5 ** ((now - self._when) / HALF_LIFE_S)
        weight = max(MEMORY, silence, self.doubt / (1 + self.doubt))
        self.mean += weight * difference
        self.doubt = (1 - weight) ** 2 * self.doubt + weight**2
        self.variance += MEMORY * ((1 - MEMORY) * difference**2 - self.variance)


def compare(paces: Sequence[Pace]) -> None:
    """Compare each server's pace with the fastest one."""
    known = [(pace.mean, number) for number, pace in enumerate(paces) if pace.mean is not None]
    if len(known) > 1:
        fastest = paces[min(known)[1]]
        for pace in paces:
            pace.compare(fastest)
