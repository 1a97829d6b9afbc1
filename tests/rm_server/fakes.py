"""Fakes for the two seams of rm_server, the model and the tokenizer, and an application over them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from starlette.types import ASGIApp

from rm_server.api_server import create_app
from rm_server.batcher import Batcher
from rm_server.calibration import Calibration
from rm_server.config import ModelSource
from rm_server.errors import InvalidRequestError
from rm_server.intake import Intake
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.protocol import Conversation
from rm_server.reloading import Make, Reloader
from rm_server.served_model import ModelCard, ServedModel
from rm_server.shelf import Shelf
from rm_server.tracing import NoTracer, Tracer

BROKEN = 701  # a token id on which the fake model raises
NOT_A_NUMBER = 702  # one on which it answers NaN


class FakeScorer:
    """The logit of a row is the sum of its ids (times k + 1 for label k). Where held, each batch waits for
    `release`."""

    def __init__(self, *, num_labels: int = 1, held: bool = False) -> None:
        self.batches: list[list[list[int]]] = []
        self._num_labels = num_labels
        self._held = held
        self._entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def score(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        self.batches.append([list(ids) for ids in batch])
        self._entered.release()
        if self._held:
            assert self._gate.acquire(timeout=20), "no test released this batch"
        if any(BROKEN in ids for ids in batch):
            raise RuntimeError("broken")
        return [self._logits(ids) for ids in batch]

    def _logits(self, ids: Sequence[int]) -> list[float]:
        total = float("nan") if NOT_A_NUMBER in ids else float(sum(ids))
        return [total * (k + 1) for k in range(self._num_labels)]

    async def entered(self) -> None:
        """Until one more batch is inside `score`."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=20), "no batch came"

    def release(self, num_batches: int = 1) -> None:
        self._gate.release(num_batches)


class FakeFormatter:
    """A content of numbers ("3 4") is those token ids; a conversation is its contents' ids in a row."""

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        if any(message["content"] == "refused" for turns in conversations for message in turns):
            raise InvalidRequestError("refused", code="chat_template_refused")
        return self.encode_rendered([" ".join(m["content"] for m in turns) for turns in conversations])

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def encode_contents(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_rendered(texts)


def fake_model(
    scorer: FakeScorer,
    executor: Executor,
    metrics: Metrics,
    *,
    name: str = "fake",
    labels: Sequence[str] = ("LABEL_0",),
    reward_offset: float = 0.0,
    max_queue_tokens: int = 1000,
    max_batch_tokens: int = 100,
    version: str = "v1",
    calibration: Calibration | None = None,
) -> ServedModel:
    card = ModelCard(
        name=name,
        version=version,
        verified=True,
        labels=labels,
        reward_offset=reward_offset,
        max_length=50,
        vocab_size=1000,
        calibration=calibration,
    )
    batcher = Batcher(
        scorer, executor, metrics, max_batch_tokens=max_batch_tokens, max_queue_tokens=max_queue_tokens
    )
    return ServedModel(card, FakeFormatter(), batcher, executor, metrics)


def alone(model: ServedModel, metrics: Metrics) -> Judge:
    """A judge of one member."""
    return Judge(model.card.name, {model.card.name: model}, metrics, calibration=model.card.calibration)


def fake_app(
    *models: ServedModel | Judge, metrics: Metrics, max_body_bytes: int = 4096, tracer: Tracer | None = None
) -> ASGIApp:
    """Over models, each alone under its name, and judges."""
    judges = [model if isinstance(model, Judge) else alone(model, metrics) for model in models]
    return app_over(Shelf(judges, metrics), metrics, max_body_bytes, tracer)


def app_over(
    shelf: Shelf, metrics: Metrics, max_body_bytes: int = 4096, tracer: Tracer | None = None
) -> ASGIApp:
    intake = Intake(metrics, max_body_bytes=max_body_bytes, max_total_bytes=4 * max_body_bytes)
    return create_app(shelf, metrics, intake, tracer or NoTracer())


def reloader(shelf: Shelf, make: Make, executor: Executor, metrics: Metrics) -> Reloader:
    """Looks again at every judge of `shelf`: `make` says what it finds."""
    sources = [ModelSource(name, ()) for name in shelf.names()]
    return Reloader(shelf, sources, make, executor, metrics)


@contextlib.asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """`app` between its startup and its shutdown."""
    to_app: asyncio.Queue[Any] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
    life = asyncio.ensure_future(app(scope, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    try:
        yield app
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await life


def post_scope(path: str) -> dict[str, Any]:
    """An ASGI request, for what an HTTP client cannot do."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }


async def leave_amid_body(app: ASGIApp, path: str) -> None:
    """A client that sends half a body and goes."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    incoming.put_nowait({"type": "http.disconnect"})
    sent: asyncio.Queue[Any] = asyncio.Queue()
    await app(post_scope(path), incoming.get, sent.put)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop run until `condition` holds."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to hold")


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """A metric's value now; 0 where it has not been seen."""
    return metrics.registry.get_sample_value(f"bonsai_rm_{name}", labels) or 0.0
