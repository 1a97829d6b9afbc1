"""The HTTP door: routes and handlers. Everything a handler needs is passed to `create_app`.

read the body -> parse it strictly -> the judge by that name -> rewards or logits -> answer
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from fastapi import FastAPI
from prometheus_client.exposition import choose_encoder
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
from rm_server.judge import Judge, Material, Wish
from rm_server.metrics import Metrics
from rm_server.middleware import CLIENT_GONE, Observed
from rm_server.protocol import ScoreAnswer, ScoreRequest
from rm_server.rerank import RerankRequest, rerank_answer
from rm_server.scoring import score
from rm_server.served_model import Timings
from rm_server.shelf import Shelf
from rm_server.strict_json import read_json
from rm_server.tracing import Tracer

logger = logging.getLogger(__name__)

Work = Callable[[bytes, Timings], Coroutine[Any, Any, Any]]
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The handlers, over the judges that are served."""

    def __init__(self, shelf: Shelf, metrics: Metrics, intake: Intake, length_penalty: float) -> None:
        self._shelf = shelf
        self._metrics = metrics
        self._intake = intake
        self._length_penalty = length_penalty
        self._started = int(time.time())

    # ---- judging -------------------------------------------------------------------------------------------

    async def score(self, body: bytes, timings: Timings) -> ScoreAnswer:
        """Our own form: normalised rewards."""
        request = read_json(body, ScoreRequest)
        return await score(request, self._shelf, timings, length_penalty=self._length_penalty)

    async def rerank(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """Jina's and Cohere's form, with the documents unless the request does without."""
        request = read_json(body, RerankRequest)
        return await self._rerank(request, request.return_documents is not False, timings)

    async def rerank_v2(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """Cohere's newer form: without the documents unless the request wants them."""
        request = read_json(body, RerankRequest)
        return await self._rerank(request, request.return_documents is True, timings)

    async def pooling(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """vLLM's form."""
        judge, logits, tokens = await self._pool(body, timings)
        return pooling_answer(judge.name, logits, tokens)

    async def classify(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """vLLM's other form."""
        judge, logits, tokens = await self._pool(body, timings)
        return classify_answer(judge.name, judge.logit_labels, logits, tokens)

    async def get_reward(self, body: bytes, timings: Timings) -> dict[str, Any]:
        """OpenRLHF's form."""
        request = read_json(body, GetRewardRequest)
        judge = self._shelf.current(None)
        if len(judge.logit_labels) > 1:
            raise InvalidRequestError("This model has several objectives: use /score or /pooling")
        query: Rendered = request.query if isinstance(request.query, str) else [*request.query]
        logits, _ = await self._logits(judge, _rendered(query), timings)
        return get_reward_answer([row[0] for row in logits])

    async def _rerank(self, request: RerankRequest, with_documents: bool, timings: Timings) -> dict[str, Any]:
        request.check()
        judge = self._shelf.current(request.model)
        with self._shelf.lend(judge):
            judgement = await judge.judge(Material(request.conversations()), Wish(), timings)
        return rerank_answer(request, judge.name, judgement, with_documents=with_documents)

    async def _pool(self, body: bytes, timings: Timings) -> tuple[Judge, list[list[float | None]], int]:
        request = read_json(body, PoolingRequest)
        request.check()
        judge = self._shelf.current(request.model)
        conversation = request.conversation()
        if conversation is not None:
            material = Material([conversation])
        else:
            assert request.input is not None  # request.check saw to it
            material = _rendered(request.input)
        return judge, *await self._logits(judge, material, timings)

    async def _logits(
        self, judge: Judge, material: Material, timings: Timings
    ) -> tuple[list[list[float | None]], int]:
        with self._shelf.lend(judge):
            logits, tokens = await judge.logits(material, timings)
        return finite(logits), tokens

    # ---- telling -------------------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """OpenAI's list, with what a judge's client wants to know besides."""
        data = [
            {"id": judge.name, "object": "model", "created": self._started, "owned_by": "bonsai"}
            | describe(judge)
            for judge in self._shelf.judges()
        ]
        return answer({"object": "list", "data": data})

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Every model could score now, and the server has not been asked to stop."""
        if await self._shelf.ready():
            return answer({"status": "ready"})
        return answer({"status": "not ready"}, status=503)

    async def render_metrics(self, request: Request) -> Response:
        """Prometheus's text form, or OpenMetrics, which has exemplars, for who asks for it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": content_type})

    # ---- running -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Every model works."""
        async with self._shelf.at_work():
            yield

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


def create_app(
    shelf: Shelf, metrics: Metrics, intake: Intake, tracer: Tracer, *, length_penalty: float = 0.0
) -> ASGIApp:
    """The application over the judges of `shelf`."""
    api = Api(shelf, metrics, intake, length_penalty)
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
        "/rerank": api.rerank,
        "/v1/rerank": api.rerank,
        "/v2/rerank": api.rerank_v2,
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
    # Around all, the answer to a bug included.
    return Observed(app, metrics, shelf, tracer, routes=gets, judging=posts)


def describe(judge: Judge) -> dict[str, Any]:
    """What `GET /v1/models` says of a model. An ensemble has no offset: its rewards have none left."""
    cards = [model.card for model in judge.members.values()]
    return {
        "max_model_len": judge.max_length,
        "version": judge.version,
        "verified": all(card.verified for card in cards),
        "objectives": judge.labels,
        "members": list(judge.members),
        "reward_offset": cards[0].reward_offset if len(cards) == 1 else 0.0,
        "calibrated": judge.calibration is not None,
    }


def _rendered(rendered: Rendered) -> Material:
    texts, ids = split_rendered(rendered)
    return Material(texts=texts, ids=ids)


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
