"""A vLLM that computes what is asked here: the same /score, the same text rules, other machinery.

It is sent token ids of our own formatting, so that control tokens which somebody wrote stay text, and asked
for raw logits. The tokenizer, labels, offset, calibration and version come from the checkpoint's folder; that
the vLLM serves the same weights is checked as far as it says where it has them from.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx

from rm_server.batcher import Scored
from rm_server.errors import (
    CheckpointError,
    ConfigError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
)
from rm_server.metrics import Metrics
from rm_server.tracing import current

TIMEOUT_S = 60
HEALTH_TIMEOUT_S = 2


class VllmEngine:
    """An engine (see served_model.Engine). At most `max_queue_tokens` are at the vLLM; beyond them, 429."""

    def __init__(
        self, url: str, model: str, metrics: Metrics, *, num_labels: int, max_queue_tokens: int
    ) -> None:
        self._url = url
        self._model = model
        self._metrics = metrics
        self._num_labels = num_labels
        self._max_queue_tokens = max_queue_tokens
        self._tokens = 0
        self._about = _peer(url, model)
        self._session: asyncio.Future[aiohttp.ClientSession] | None = None

    async def run(self) -> None:
        """Keeps connections until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session:
            self._opened().set_result(session)
            await asyncio.Event().wait()

    async def score(self, rows: Sequence[Sequence[int]]) -> Scored:
        """Raises EngineUnavailableError, QueueFullError, InvalidRequestError (more tokens than can ever be
        there)."""
        tokens = sum(map(len, rows))
        with self._in_work(tokens):
            session = await asyncio.shield(self._opened())
            started = time.perf_counter()
            with current().child(f"pooling {self._model}", self._about, client=True) as span:
                logits = await self._ask(session, rows, span.headers())
        self._metrics.tokens.inc(tokens)
        return Scored(logits, 0.0, time.perf_counter() - started)

    async def _ask(
        self, session: aiohttp.ClientSession, rows: Sequence[Sequence[int]], headers: dict[str, str]
    ) -> list[list[float]]:
        question = self._question(rows)
        try:
            async with session.post(f"{self._url}/pooling", json=question, headers=headers) as answer:
                return read_logits(answer.status, await answer.read(), len(rows), self._num_labels)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnavailableError from error

    async def ready(self) -> bool:
        """Whether the vLLM says that it is well."""
        session = await asyncio.shield(self._opened())
        timeout = aiohttp.ClientTimeout(HEALTH_TIMEOUT_S)
        try:
            async with session.get(f"{self._url}/health", timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def try_out(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Logits, before anything runs. Raises CheckpointError."""
        try:
            answer = httpx.post(f"{self._url}/pooling", json=self._question(rows), timeout=TIMEOUT_S)
            return read_logits(answer.status_code, answer.content, len(rows), self._num_labels)
        except (httpx.HTTPError, EngineUnavailableError) as error:
            raise CheckpointError(f"{self._url}: the vLLM there does not score a greeting") from error

    def _question(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {"model": self._model, "input": [list(ids) for ids in rows], "use_activation": False}

    def _opened(self) -> asyncio.Future[aiohttp.ClientSession]:
        if self._session is None:
            self._session = asyncio.get_running_loop().create_future()
        return self._session

    @contextmanager
    def _in_work(self, tokens: int) -> Iterator[None]:
        if tokens > self._max_queue_tokens:
            raise InvalidRequestError(
                f"The request holds {tokens} tokens, {tokens - self._max_queue_tokens} more than the queue "
                f"of {self._max_queue_tokens}. Split it into several requests.",
                code="request_too_large",
            )
        if self._tokens + tokens > self._max_queue_tokens:
            self._metrics.rejected.inc()
            raise QueueFullError(retry_after=1)
        self._tokens += tokens
        self._metrics.queue_tokens.inc(tokens)
        try:
            yield
        finally:
            self._tokens -= tokens
            self._metrics.queue_tokens.dec(tokens)


def _peer(url: str, model: str) -> dict[str, str | int]:
    parts = urlsplit(url)
    return {
        "gen_ai.operation.name": "pooling",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": model,
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def read_logits(status: int, body: bytes, num_rows: int, num_labels: int) -> list[list[float]]:
    """What /pooling answered, rows x labels. Raises EngineUnavailableError on anything else."""
    try:
        # The standard library's reader, because a broken model may well answer NaN.
        data = sorted(json.loads(body)["data"], key=lambda row: row["index"])
        logits = [[float("nan") if x is None else float(x) for x in row["data"]] for row in data]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineUnavailableError from error
    if status != 200 or len(logits) != num_rows or any(len(row) != num_labels for row in logits):
        raise EngineUnavailableError
    return logits


def look_up(url: str, folder: Path) -> tuple[str, int | None]:
    """The name of the vLLM's model and how many tokens it reads. Raises ConfigError where nobody
    answers, CheckpointError where another folder of this machine is served."""
    try:
        card = httpx.get(f"{url}/v1/models", timeout=TIMEOUT_S).raise_for_status().json()["data"][0]
        name, length, root = card["id"], card.get("max_model_len"), Path(str(card.get("root")))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{url}: no vLLM answers there") from error
    if root.is_dir() and root.resolve() != folder:
        raise CheckpointError(f"{url}: the vLLM there serves {root}, not {folder}")
    return str(name), length if isinstance(length, int) else None
