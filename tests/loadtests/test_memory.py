"""Memory over time: what is read, and what counts as growth."""

import asyncio
import math
import os
import subprocess
import sys
from itertools import count, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import memory
from loadtests.errors import LoadTestError
from loadtests.memory import MIB, Look, family_pss_bytes, growths, pss_bytes, watched


def looks(*sizes: float) -> list[Look]:
    """One a second."""
    return [Look(float(second), {"server": size * MIB}) for second, size in enumerate(sizes)]


def test_growth_is_of_medians_after_the_warm_up() -> None:
    # Seconds 0 and 1 of 0..10 are the warm-up; 2..10 are nine looks, whose fifth is one.
    [found] = growths(looks(1, 9, 10, 99, 10, 10, 10, 10, 10, 99, 12), 0, 10, 2 * MIB)
    assert (found.before, found.after, found.by) == (10 * MIB, 12 * MIB, 2 * MIB)
    assert found.kept
    # Looks after the end (a judge's work) do not count.
    [found] = growths(looks(1, 9, 10, 10, 10, 10, 10, 10, 10, 10, 13, 50), 0, 10, 2 * MIB)
    assert found.by == 3 * MIB
    assert not found.kept


def test_a_single_look_does_not_decide() -> None:
    steady = [50.0] * 30
    steady[-1] = 400.0
    [found] = growths(looks(*steady), 0, 29, MIB)
    assert found.by == 0


def test_a_server_that_ended_is_not_flat() -> None:
    [found] = growths(looks(*[5.0] * 9, math.nan), 0, 9, MIB)
    assert not found.kept
    assert growths([], 0, 9, MIB) == []
    [found] = growths(looks(5.0), 10, 20, MIB)  # nobody looked
    assert not found.kept
    assert memory.table([found]).rows[0][-1] == "NO"


@given(st.floats(1, 1e4), st.floats(-50, 50))
def test_a_straight_line_grows_by_its_slope(start: float, slope: float) -> None:
    straight = [start + 1000 + slope * second for second in range(101)]
    [found] = growths(looks(*straight), 0, 100, 0)
    # Looks 20..35 and 85..100: their medians are 65 s apart.
    assert found.by / MIB == pytest.approx(65 * slope, abs=1e-6)
    assert found.kept == (found.by <= 0)


def test_the_memory_of_a_family_is_that_of_its_members() -> None:
    child = "import sys; held = b'x' * (40 << 20); print(flush=True); sys.stdin.read()"
    own = pss_bytes(os.getpid())
    assert own > MIB
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pss_bytes(process.pid) > 40 * MIB
        assert family_pss_bytes(os.getpid()) > pss_bytes(os.getpid()) + 40 * MIB
        process.communicate()
    assert math.isnan(family_pss_bytes(process.pid))
    with pytest.raises(LoadTestError, match=f"the memory of gone, process {process.pid}, cannot be read"):
        memory.check({"gone": process.pid})


async def test_looks_are_taken_until_the_end() -> None:
    async with watched({"me": os.getpid()}, 0.001) as found:
        for _ in takewhile(lambda _: len(found) < 3, count()):
            await asyncio.sleep(0)
    seen = len(found)
    assert [look.at for look in found] == sorted(look.at for look in found)
    assert all(look.pss["me"] > MIB for look in found)
    await asyncio.sleep(0)
    assert len(found) == seen
    drawn = memory.picture(found, found[0].at)
    assert [series.name for series in drawn.series] == ["me", "all"]
