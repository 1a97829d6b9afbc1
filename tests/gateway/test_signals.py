"""Signals of this very process, as a server hears them."""

import asyncio
import os
import signal

import pytest

from gateway.signals import obey


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.leaving = False
        self.orders: list[object] = []
        self.news = asyncio.Event()

    def leave(self, delay_s: float) -> None:
        self.leaving = True
        self._note(delay_s)

    def hurry(self) -> None:
        self._note("hurry")

    def reload(self) -> None:
        self._note("reload")

    def _note(self, order: object) -> None:
        self.orders.append(order)
        self.news.set()

    async def after(self, number: signal.Signals) -> None:
        """Until a signal has been heard."""
        self.news.clear()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(self.news.wait(), 10)


@pytest.mark.parametrize(("first", "delay"), [(signal.SIGTERM, 5.0), (signal.SIGINT, 0.0)])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_asks_and_the_second_insists(
    first: signal.Signals, delay: float, second: signal.Signals
) -> None:
    heard = Heard()
    obey(heard, 5.0)
    for number in (signal.SIGHUP, first, signal.SIGHUP, second):
        await heard.after(number)
    assert heard.orders == ["reload", delay, "reload", "hurry"]


async def test_a_worker_leaves_haste_to_its_supervisor() -> None:
    heard = Heard()
    obey(heard, 5.0, hurry_on_second=False)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        await heard.after(number)
    assert heard.orders == [5.0, 5.0, 0.0]
