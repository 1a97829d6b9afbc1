"""Requests under way, counted."""

import asyncio

from gateway.drain import Drain


async def test_rest_comes_with_the_end_of_the_last_request() -> None:
    drain = Drain()
    await drain.at_rest()
    with drain.request():
        with drain.request():
            waiting = asyncio.create_task(drain.at_rest())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_rest_is_not_waited_for_for_ever() -> None:
    drain = Drain()
    with drain.request():
        await asyncio.wait_for(drain.at_rest(), 10)
