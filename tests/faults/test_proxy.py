"""A: what the network breaks between gateway and policy, at any byte of an answer's head, framing or body.

The proxy of loadtests stands before the policy server, which answers as ever.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from loadtests.fakes.http_server import listen
from loadtests.fakes.proxy import FaultProxy
from loadtests.fakes.script import Fault, Kind, ProxyScript
from tests.faults.world import World, texts
from tests.gateway.stack import check_envelope

ALONE = pytest.mark.parametrize("world", [{"replicas": 1}], indirect=True)
"""Nobody else can be asked for what was lost."""


@asynccontextmanager
async def proxied(world: World) -> AsyncIterator[FaultProxy]:
    """A proxy between the gateway and its first policy server, for the length of the block."""
    assert world.instance is not None
    config = world.configured[-1]
    proxy = FaultProxy(ProxyScript(), world.vllms[0].url)
    server = await listen(proxy, 0)
    host, port = server.sockets[0].getsockname()
    policy = replace(config.policies[0], urls=(f"http://{host}:{port}",))
    world.configured.append(replace(config, policies=(policy,)))
    assert await world.instance.reload()
    try:
        yield proxy
    finally:
        world.configured.append(config)
        assert await world.instance.reload()
        server.close()
        await server.wait_closed()


@ALONE
@pytest.mark.parametrize("kind", ["reset", "half_close", "garbage"])
async def test_an_answer_broken_at_any_byte_is_whole_or_an_error_never_a_part(
    world: World, kind: Kind
) -> None:
    async with proxied(world) as proxy:
        whole = {name: texts(answer) for name, answer in (await world.every_way()).items()}
        broken = 0
        for after in range(0, 1200, 61):
            proxy.obey(ProxyScript(faults=(Fault(kind=kind, after=after),)))
            for name, answer in (await world.every_way()).items():
                if answer.status_code != 200:
                    check_envelope(answer, answer.status_code)
                    assert answer.status_code in {502, 503}
                    broken += 1
                elif "best_of" in name or name == "whole":
                    assert texts(answer)[0] in {"a", "aa", "aaa", "aaaa"}
                else:
                    assert texts(answer) in (whole[name], ["error"])
        assert broken > 10
