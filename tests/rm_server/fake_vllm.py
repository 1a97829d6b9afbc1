"""A vLLM's /pooling on a loopback port, in a thread: the sum of the ids, or what a test makes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web


class FakeVllm:
    """`logits` maps rows of ids to rows of logits; `root` is where it says that its weights come from."""

    def __init__(self) -> None:
        self.url = ""
        self.root: str = "org/judge"
        self.max_model_len: int | None = 50
        self.status = 200
        self.broken: Any = None
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.logits: Callable[[Sequence[Sequence[int]]], list[list[float]]] = lambda rows: [
            [float(sum(ids))] for ids in rows
        ]
        self.gate = threading.Event()
        self.gate.set()

    async def pooling(self, request: web.Request) -> web.Response:
        question = await request.json()
        self.questions.append(question)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        await asyncio.to_thread(self.gate.wait, 20)
        if self.broken is not None:
            return web.json_response(self.broken, status=self.status)
        rows = enumerate(self.logits(question["input"]))
        data = [{"index": index, "object": "pooling", "data": row} for index, row in rows]
        return web.json_response({"data": data[::-1], "usage": {}}, status=self.status)

    async def models(self, request: web.Request) -> web.Response:
        card = {"id": "served-name", "root": self.root, "max_model_len": self.max_model_len}
        return web.json_response({"object": "list", "data": [card]}, status=self.status)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.status)


@contextmanager
def fake_vllm() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    app = web.Application()
    app.add_routes(
        [
            web.post("/pooling", fake.pooling),
            web.get("/v1/models", fake.models),
            web.get("/health", fake.health),
        ]
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = web.AppRunner(app)
    try:
        asyncio.run_coroutine_threadsafe(_start(runner), loop).result(20)
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        fake.gate.set()
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(runner: web.AppRunner) -> None:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
