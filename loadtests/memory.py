"""The memory of servers and of all that descends from them, over time, and whether it stays flat.

Memory is the proportional set size (PSS): a page that several processes share is counted once in all. Growth
is the median of the last fifth of the looks less the median of the first fifth after the warm-up: one look at
a garbage collector's worst moment decides nothing.
"""

import asyncio
import math
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import LoadTestError
from loadtests.http_client import now
from loadtests.page import Picture
from loadtests.plots import Series
from loadtests.processes import family
from loadtests.tables import Table, number

MIB = 2**20
WARM_UP = 0.2
"""Share of a run after which memory has to stay as it is: until then caches fill."""


@dataclass(frozen=True)
class Look:
    """Bytes of each server at an instant by `now`; nan for one that is gone."""

    at: float
    pss: Mapping[str, float]


@dataclass(frozen=True)
class Growth:
    """Of one server, in bytes; nan where it was not seen to the end."""

    server: str
    before: float
    after: float
    bound: float

    @property
    def by(self) -> float:
        return self.after - self.before

    @property
    def kept(self) -> bool:
        """Whether it stays within the bound; what was not measured does not."""
        return self.by <= self.bound


def pss_bytes(pid: int) -> int:
    """Of one process. OSError where there is none, or where it is another user's."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kib) * 1024


def family_pss_bytes(pid: int) -> float:
    """Of a process and of all that descend from it and still run; nan where it is gone itself."""
    try:
        total = pss_bytes(pid)
    except (OSError, ValueError):  # the file of a process that has ended but is not buried yet is empty
        return math.nan
    for member in family(pid)[1:]:
        with suppress(OSError, ValueError):
            total += pss_bytes(member)
    return total


def check(pids: Mapping[str, int]) -> None:
    """Raises LoadTestError where the memory of one cannot be read."""
    for server, pid in pids.items():
        if math.isnan(family_pss_bytes(pid)):
            raise LoadTestError(
                f"the memory of {server}, process {pid}, cannot be read: is it running, and yours?"
            )


@asynccontextmanager
async def watched(pids: Mapping[str, int], period_s: float) -> AsyncIterator[list[Look]]:
    """A list that grows by a look every so many seconds until the end of this."""
    looks: list[Look] = []

    async def watch() -> None:
        while True:
            looks.append(await asyncio.to_thread(_look, pids))  # reading takes milliseconds: not in the loop
            await asyncio.sleep(period_s)

    task = asyncio.create_task(watch())
    try:
        yield looks
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _look(pids: Mapping[str, int]) -> Look:
    return Look(now(), {server: family_pss_bytes(pid) for server, pid in pids.items()})


def growths(looks: Sequence[Look], begin: float, end: float, bound: float) -> list[Growth]:
    """Of every server between two instants, its warm-up left out."""
    warm = begin + WARM_UP * (end - begin)
    counted = [look for look in looks if warm <= look.at <= end]
    fifth = max(1, len(counted) // 5)
    return [
        Growth(server, _median(counted[:fifth], server), _median(counted[-fifth:], server), bound)
        for server in (looks[0].pss if looks else ())
    ]


def _median(looks: Sequence[Look], server: str) -> float:
    found = [look.pss[server] for look in looks]
    return math.nan if not found or any(map(math.isnan, found)) else statistics.median(found)


def table(found: Sequence[Growth]) -> Table:
    """A row for each server."""
    head = ("server", "after the warm-up", "at the end", "growth", "at most", "flat")
    rows = [
        (
            growth.server,
            *(
                "not measured" if math.isnan(n) else number(n / MIB, "MiB")
                for n in (growth.before, growth.after)
            ),
            "not measured" if math.isnan(growth.by) else f"{growth.by / MIB:+.1f} MiB",
            number(growth.bound / MIB, "MiB"),
            "yes" if growth.kept else "NO",
        )
        for growth in found
    ]
    return Table("Memory (proportional set size, children included)", head, rows)


def picture(looks: Sequence[Look], begin: float) -> Picture:
    """A line for each server, and one for all."""
    servers = list(looks[0].pss) if looks else []
    lines = [Series(name, [(look.at - begin, look.pss[name] / MIB) for look in looks]) for name in servers]
    total = [(look.at - begin, sum(look.pss.values()) / MIB) for look in looks]
    return Picture("Memory over time", "seconds into the run", "MiB", [*lines, Series("all", total)])
