"""Probes: when they come, what they do to a replica, and that none outlives its watch."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from gateway.health_watch import HealthWatch
from gateway.replicas import Outcome, Replicas


class Server:
    """A server whose health the test decides on."""

    def __init__(self) -> None:
        self.healthy = True
        self.breaks = False
        self.hangs = False
        self.probes = 0

    async def probe(self) -> bool:
        self.probes += 1
        if self.breaks:
            raise ZeroDivisionError
        if self.hangs:
            await asyncio.Event().wait()
        return self.healthy


class Naps:
    """A `sleep` that the test ends."""

    def __init__(self) -> None:
        self.asleep: list[tuple[float, asyncio.Future[None]]] = []
        self._another = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        nap = asyncio.get_running_loop().create_future()
        self.asleep.append((seconds, nap))
        self._another.set()
        await nap

    async def all_asleep(self, count: int) -> list[float]:
        """How long they sleep, as soon as all of them do."""
        async with asyncio.timeout(5):
            while len(self.asleep) < count:
                self._another.clear()
                await self._another.wait()
        return [seconds for seconds, _ in self.asleep]

    def wake(self) -> None:
        """Morning."""
        asleep, self.asleep = self.asleep, []
        for _, nap in asleep:
            nap.set_result(None)


class Ward:
    """Two servers under watch."""

    def __init__(self) -> None:
        self.servers = {"a": Server(), "b": Server()}
        self.replicas = Replicas(self.servers, clock=lambda: 0.0)
        self.naps = Naps()
        self.watch = HealthWatch(self.replicas, Server.probe, sleep=self.naps, timeout_s=0.05)

    async def round(self) -> list[float]:
        """Each server is probed once more; the pauses after that."""
        self.naps.wake()
        return await self.naps.all_asleep(2)

    def out(self) -> list[str]:
        return [replica.name for replica in self.replicas.all if replica.ejected]


@asynccontextmanager
async def under_watch() -> AsyncGenerator[Ward, None]:
    """A ward after its first round."""
    before = asyncio.all_tasks()
    found = Ward()
    found.watch.start()
    await found.naps.all_asleep(2)
    yield found
    await found.watch.stop()
    assert asyncio.all_tasks() == before


async def test_healthy_replicas_are_probed_about_every_5_s() -> None:
    async with under_watch() as ward:
        for count in range(1, 20):
            pauses = await ward.naps.all_asleep(2)
            assert all(4 <= pause <= 6 for pause in pauses)
            assert ward.servers["a"].probes == ward.servers["b"].probes == count
            await ward.round()
        assert ward.out() == []


async def test_the_second_bad_probe_in_a_row_takes_out_and_a_good_one_brings_back() -> None:
    async with under_watch() as ward:
        sick = ward.servers["a"]
        for healthy, out in [
            (False, []),
            (True, []),
            (False, []),
            (False, ["a"]),
            (False, ["a"]),
            (True, []),
        ]:
            sick.healthy = healthy
            pauses = await ward.round()
            assert ward.out() == out
            assert any(0.8 <= pause <= 1.2 for pause in pauses) is not healthy


async def test_who_failed_too_many_requests_is_probed_every_second() -> None:
    async with under_watch() as ward:
        for _ in range(5):
            with ward.replicas.using(ward.replicas.all[0]) as lease:
                lease.note(Outcome.ERROR)
        assert min(await ward.round()) <= 1.2


async def test_a_probe_that_breaks_is_a_bad_one(caplog: pytest.LogCaptureFixture) -> None:
    async with under_watch() as ward:
        ward.servers["a"].breaks = True
        with caplog.at_level(logging.CRITICAL):
            await ward.round()
            await ward.round()
        assert ward.out() == ["a"]


async def test_a_probe_without_an_answer_is_a_bad_one_and_holds_up_nobody() -> None:
    async with under_watch() as ward:
        ward.servers["a"].hangs = True
        ward.naps.wake()
        await ward.naps.all_asleep(1)  # b's, while a's probe hangs
        assert ward.servers["b"].probes == 2
        await ward.naps.all_asleep(2)
        ward.servers["a"].hangs, ward.servers["a"].healthy = False, False
        await ward.round()
        assert ward.out() == ["a"]


async def test_a_watch_ends_in_the_middle_of_a_probe() -> None:
    async with under_watch() as ward:
        ward.servers["a"].hangs = True
        ward.naps.wake()
        await ward.naps.all_asleep(1)
