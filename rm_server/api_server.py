"""The HTTP door: routes and handlers. Everything a handler needs is passed to `create_app`.

read the body -> parse it strictly -> token ids -> queue -> logits -> rewards -> answer
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from rm_server.compatible import (
    GetRewardRequest,
    PoolingRequest,
    Rendered,
    classify_answer,
    get_reward_answer,
    pooling_answer,
    split_rendered,
)
from rm_server.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RmServerError,
    error_body,
)
from rm_server.intake import Intake, unless_gone
from rm_server.metrics import Metrics
from rm_server.middleware import CLIENT_GONE, Observed
from rm_server.protocol import ScoreAnswer, ScoreRequest
from rm_server.served_model import ServedModel, Timings
from rm_server.strict_json import read_json

logger = logging.getLogger(__name__)

Work = Callable[[bytes, Timings], Coroutine[Any, Any, Any]]
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The handlers, over the models that are served; the first is the one meant where a request names
    none.
    """

    def __init__(self, models: Mapping[str, ServedModel], metrics: Metrics, intake: Intake) -> None:
        self._models = models
        self._metrics = metrics
        self._intake = intake
        self._started = int(time.time())
        self._serving: list[asyncio.Task[None]] = []

    # ---- judging -------------------------------------------------------------------------------------------

    async def score(self, body: bytes, timings: Timings) -> ScoreAnswer:
        """Our own form: normalised rewards."""
        request = read_json(body, ScoreRequest)
        model = self._model(request.model)
        conversations = request.to_conversations()
        model.check_objectives(request.objectives)
        rows = await model.encode(conversations, timings)
        rewards = model.rewards(await model.logits(rows, timings), request.objectives)
        return ScoreAnswer(
            model=model.card.name,
            version=model.card.version,
            scores=rewards,
            usage={"tokens": sum(map(len, rows))},
            members={model.card.name: rewards} if request.return_members else None,
            spread=[0.0] * len(rewards) if request.ensemble or request.return_members else None,
        )

    async def pooling(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """vLLM's form."""
        model, logits, tokens = await self._pool(body, timings)
        return pooling_answer(model.card.name, logits, tokens)

    async def classify(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """vLLM's other form."""
        model, logits, tokens = await self._pool(body, timings)
        return classify_answer(model.card.name, list(model.card.labels), logits, tokens)

    async def get_reward(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """OpenRLHF's form."""
        request = read_json(body, GetRewardRequest)
        model = self._model(None)
        if len(model.card.labels) > 1:
            raise InvalidRequestError("This model has several objectives: use /score or /pooling")
        query: Rendered = request.query if isinstance(request.query, str) else [*request.query]
        rows = await self._rendered_rows(model, query, timings)
        logits = finite(await model.logits(rows, timings))
        return get_reward_answer([row[0] for row in logits])

    async def _pool(self, body: bytes, timings: Timings) -> tuple[ServedModel, list[list[float | None]], int]:
        request = read_json(body, PoolingRequest)
        request.check()
        model = self._model(request.model)
        conversation = request.conversation()
        if conversation is not None:
            rows = await model.encode([conversation], timings)
        else:
            assert request.input is not None  # request.check saw to it
            rows = await self._rendered_rows(model, request.input, timings)
        return model, finite(await model.logits(rows, timings)), sum(map(len, rows))

    async def _rendered_rows(
        self, model: ServedModel, rendered: Rendered, timings: Timings
    ) -> list[list[int]]:
        texts, ids = split_rendered(rendered)
        return ids or await model.encode_rendered(texts, timings)

    def _model(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise NotFoundError(
                "No such model here; GET /v1/models lists them", param="model", code="model_not_found"
            )
        return self._models[name]

    # ---- telling -------------------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """OpenAI's list, with what a judge's client wants to know besides."""
        data = [
            {
                "id": model.card.name,
                "object": "model",
                "created": self._started,
                "owned_by": "bonsai",
                "max_model_len": model.card.max_length,
                "version": model.card.version,
                "verified": model.card.verified,
                "objectives": model.card.labels,
                "reward_offset": model.card.reward_offset,
            }
            for model in self._models.values()
        ]
        return answer({"object": "list", "data": data})

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Every model's queue is being served."""
        if self._serving and not any(task.done() for task in self._serving):
            return answer({"status": "ready"})
        return answer({"status": "not ready"}, status=503)

    async def render_metrics(self, request: Request) -> Response:
        """Prometheus's text form."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # ---- running -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Serves every model's queue."""
        self._serving = [asyncio.create_task(model.batcher.run()) for model in self._models.values()]
        for model in self._models.values():
            self._metrics.models.labels(model.card.name, model.card.version).set(1)
        yield
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def judging(self, work: Work) -> Handler:
        """A handler that reads the body and gives up when its client does."""

        async def handler(request: Request) -> Response:
            try:
                body = await self._intake.read(request)
                with self._intake.in_work(len(body)):
                    return answer(await unless_gone(request, work(body, request.scope["timings"])))
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)

        return handler


def create_app(models: Mapping[str, ServedModel], metrics: Metrics, intake: Intake) -> ASGIApp:
    """The application over `models`, of which there is at least one."""
    api = Api(models, metrics, intake)
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=api.lifespan
    )
    gets = {
        "/v1/models": api.list_models,
        "/health": api.live,
        "/health/live": api.live,
        "/health/ready": api.ready,
        "/metrics": api.render_metrics,
    }
    posts: dict[str, Work] = {
        "/score": api.score,
        "/pooling": api.pooling,
        "/classify": api.classify,
        "/get_reward": api.get_reward,
    }
    for path, handler in gets.items():
        app.add_route(path, handler, methods=["GET"])
    for path, work in posts.items():
        app.add_route(path, api.judging(work), methods=["POST"])
    app.add_exception_handler(RmServerError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    return Observed(
        app, metrics, routes=frozenset([*gets, *posts])
    )  # around all, the answer to a bug included


def finite(logits: list[list[float]]) -> list[list[float | None]]:
    """JSON has no NaN: what is not finite becomes null."""
    return [[value if math.isfinite(value) else None for value in row] for row in logits]


def answer(content: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RmServerError)
    return Response(
        error_body(error), status_code=error.status, headers=error.headers, media_type="application/json"
    )


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """The framework's own: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = await _answer_error(request, MethodNotAllowedError("This path takes another method"))
    else:
        response = await _answer_error(request, NotFoundError("No such path", code="unknown_path"))
    response.headers.update(error.headers or {})
    return response


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Answered by the outermost layer, which also logs the traceback."""
    return await _answer_error(request, RmServerError("The server has a bug; its log says which."))
