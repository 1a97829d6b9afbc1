"""A policy and a reward server that answer everything, so that the whole way through the gateway is run.

python -m tests.fuzz.upstream
"""

import asyncio

from aiohttp import web

from tests.gateway.fake_servers import FakeRewardServer, FakeVllm


class AgreeableVllm(FakeVllm):
    """Takes chats to tokenize too."""

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": 1, "max_model_len": 512, "tokens": [1]})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": "x"})


async def main() -> None:
    """Serve until killed; the addresses go to stdout."""
    servers = AgreeableVllm(), FakeRewardServer()
    for server in servers:
        await server.start()
    print(*(server.url for server in servers), flush=True)
    while True:
        for server in servers:
            server.requests.clear()
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main())
