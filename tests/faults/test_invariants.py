"""The invariants themselves: each of them can fail. A world that nothing happened to passes; one that was
harmed on purpose does not."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from tests.faults.fakes import answering, silent
from tests.faults.invariants import Footprint, check, check_gone
from tests.faults.world import CANARY_KEY, CANARY_PROMPT, World, client_for, standing, until


async def leak_a_task(world: World) -> None:
    """Something of the gateway's runs on after its request."""
    world.keep = asyncio.create_task(asyncio.Event().wait())  # type: ignore[attr-defined]


async def lose_a_slot(world: World) -> None:
    """A request is gone, and its slot was not given back."""
    world.metrics.slots.inc()


async def log_an_error(world: World) -> None:
    """An error nobody declared."""
    logging.getLogger("gateway").error("what is this?")


async def log_a_traceback(world: World) -> None:
    """A warning, but with a traceback."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("uvicorn.error").warning("well", exc_info=True)


async def drop_an_exception(world: World) -> None:
    """A task fails, and nobody looks."""

    async def fail() -> None:
        raise ZeroDivisionError

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    del task


async def tell_a_secret_in_the_log(world: World) -> None:
    """At DEBUG, with the key."""
    logging.getLogger("gateway.policy").debug("asking with %s", CANARY_KEY)


async def tell_a_secret_in_a_label(world: World) -> None:
    """A metric with the prompt in it."""
    world.metrics.errors.labels(CANARY_PROMPT).inc()


async def miscount(world: World) -> None:
    """One request counted twice."""
    world.metrics.requests.labels("other", "none", "200").inc()


async def have_a_bug(world: World) -> None:
    """A request that ended in a 500, counted as such."""
    world.metrics.requests.labels("other", "none", "500").inc()
    world.arrivals.count += 1


HARM = [
    leak_a_task,
    lose_a_slot,
    log_an_error,
    log_a_traceback,
    drop_an_exception,
    tell_a_secret_in_the_log,
    tell_a_secret_in_a_label,
    miscount,
    have_a_bug,
]


@pytest.mark.parametrize("harm", HARM)
async def test_harm_is_seen(harm: Callable[[World], Awaitable[None]]) -> None:
    async with standing() as world:
        before = Footprint.now()
        await harm(world)
        with pytest.raises(AssertionError):
            await check(world, before, patience_s=0.05)
        if harm is leak_a_task:
            world.keep.cancel()  # type: ignore[attr-defined]


async def test_what_the_process_holds_is_seen() -> None:
    before = Footprint.now()
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    task = asyncio.create_task(asyncio.Event().wait())
    assert before.grown_to(Footprint.now()) == "tasks {'Event.wait': 1} 3 files"
    for file in files:
        os.close(file)
    task.cancel()


async def test_a_connection_that_outlives_the_gateway_is_seen() -> None:
    async with standing() as world:
        host, port = world.vllms[0].url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: world.vllms[0].connections, "the connection stands")
        with pytest.raises(AssertionError, match="no connection"):
            await check_gone(world, patience_s=0.05)
        writer.close()


async def test_a_secret_in_an_error_is_seen(world: World) -> None:
    told = b'{"error": {"message": "%s", "type": "", "param": null, "code": ""}}' % CANARY_PROMPT.encode()
    world.vllms[0].behaviour = answering(told, 400, {"content-type": "application/json", "x-request-id": "1"})
    async with client_for(world.vllms[0].url) as http:
        with pytest.raises(AssertionError, match=CANARY_PROMPT):
            await http.post("/v1/completions", json={})


async def test_work_that_nobody_waits_for_is_seen() -> None:
    async with standing() as world:
        before = Footprint.now()
        asked = asyncio.Event()

        async def note_and_say_nothing(request: web.Request) -> web.StreamResponse:
            asked.set()
            return await silent(request)

        world.policies_do(note_and_say_nothing)
        request = asyncio.create_task(world.chat())
        await asked.wait()
        with pytest.raises(AssertionError, match="nothing open"):
            await check(world, before, patience_s=0.05)
        request.cancel()
