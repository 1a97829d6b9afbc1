"""The `world` of every fault test, and the invariants that are checked when the test is over."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

import pytest
import uvloop

from gateway import keys_file
from tests.faults.invariants import Footprint, check, check_gone, check_works
from tests.faults.world import World, standing


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def frozen() -> Iterator[None]:
    """As where the gateway serves: what was imported is not walked by each collection, whose pauses would
    be felt."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncGenerator[World, None]:
    """A gateway and what is behind it. `@pytest.mark.parametrize("world", [FIELDS], indirect=True)` sets it
    up; its `keys` become the keys file."""
    fields = dict(getattr(request, "param", {}))
    if "keys" in fields:
        path, keys = request.getfixturevalue("tmp_path") / "keys.json", fields.pop("keys")
        keys_file.update(path, lambda _: keys, create=True)
        fields["keys_file"] = str(path)
    empty = Footprint.now()
    async with standing(**fields) as made:
        await check_works(made)
        before = Footprint.now()
        yield made
        await check(made, before)
        await check_gone(made)
    left = empty.grown_to(Footprint.now())
    assert not left, left
