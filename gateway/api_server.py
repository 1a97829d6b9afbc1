"""The HTTP surface: routes, handlers, lifespan. `create_app` takes fakes at its two seams.

python -m gateway --policy-url http://127.0.0.1:8100 --reward-url http://127.0.0.1:8200
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from gateway.config import GatewayConfig
from gateway.errors import GatewayError, InvalidRequestError, OverloadedError, from_http_status
from gateway.fields import DETOKENIZE_FIELDS, TOKENIZE_FIELDS, forwardable
from gateway.intake import CHAT_PATH, COMPLETION_PATH, Job, read_json, resolve_model, understand
from gateway.metrics import Metrics
from gateway.middleware import Observe, Trace
from gateway.names import label
from gateway.policy import Policy, VllmPolicy
from gateway.protocol import TokenizeRequest, validate
from gateway.rewards import RewardModel, connect
from gateway.service import Exchange, Service
from gateway.streaming import cancelled_when_gone

PROMETHEUS_TEXT = "text/plain; version=1.0.0; charset=utf-8"


def create_app(
    config: GatewayConfig, *, policy: Policy | None = None, reward: RewardModel | None = None
) -> FastAPI:
    """The gateway as an ASGI application. `policy` and `reward` replace the clients that `config` would
    make."""
    metrics = Metrics()
    policy = policy or VllmPolicy(config.policy)
    if reward is None and config.reward is not None:
        reward = connect(config.reward)
    service = Service(config, policy, reward, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.drain.at_rest()
        await policy.close()
        if reward is not None:
            await reward.close()

    app = FastAPI(
        title="Bonsai gateway",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Observe, metrics=metrics, drain=service.drain)
    app.state.service = service
    _add_error_handlers(app, metrics)
    _add_generation_routes(app, service)
    _add_token_routes(app, service)
    _add_model_routes(app, service)
    _add_operator_routes(app, service)
    return app


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(GatewayError)
    async def answer_error(_: Request, error: GatewayError) -> Response:
        metrics.errors.labels(error.code).inc()
        return Response(error.body(), error.status, error.headers(), "application/json")

    @app.exception_handler(HTTPException)
    async def answer_refusal(request: Request, refusal: HTTPException) -> Response:
        response = await answer_error(request, from_http_status(refusal.status_code, refusal.headers))
        if refusal.headers and "Allow" in refusal.headers:
            response.headers["allow"] = refusal.headers["Allow"]
        return response


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    async def chat_completions(request: Request) -> Response:
        return await _generate(request, service, CHAT_PATH)

    async def completions(request: Request) -> Response:
        return await _generate(request, service, COMPLETION_PATH)

    # Starlette's own routes: FastAPI's look for parameters, which these have not, for a tenth of the time.
    app.add_route(CHAT_PATH, chat_completions, methods=["POST"])
    app.add_route(COMPLETION_PATH, completions, methods=["POST"])


async def _generate(request: Request, service: Service, path: str) -> Response:
    trace: Trace = request.state.trace
    trace.route = path
    body = await read_json(request, service.config.limits.max_body_bytes)
    async with AsyncExitStack() as stack:
        exchange = Exchange(trace.request_id, stack, trace)
        async with cancelled_when_gone(request.receive, service.drain):
            job = await _understand(request, service, body, trace)
            return await service.generate(job, exchange)


async def _understand(request: Request, service: Service, body: dict[str, Any], trace: Trace) -> Job:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequestError("`model` must be a text.", param="model")
    trace.model = "other"
    served = await service.models.lookup(model)
    trace.model = label(served, model)
    chat = trace.route == CHAT_PATH
    return understand(body, request.headers, chat=chat, served=served, config=service.config)


def _add_token_routes(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await _ask(request, service, TOKENIZE_FIELDS)

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return await _ask(request, service, DETOKENIZE_FIELDS)


async def _ask(request: Request, service: Service, known: frozenset[str]) -> Response:
    trace = _trace(request)
    body = await read_json(request, service.config.limits.max_body_bytes)
    upstream_body, ignored = forwardable(body, known, service.config.allow_fields)
    async with AsyncExitStack() as stack, cancelled_when_gone(request.receive, service.drain):
        name = validate(body, TokenizeRequest).model
        served = await service.models.lookup(name)
        trace.model = label(served, name)
        upstream_body["model"], _ = resolve_model(name, served)
        return await service.ask(
            request.url.path, upstream_body, ignored, Exchange(trace.request_id, stack, trace)
        )


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _trace(request)
        return _json({"object": "list", "data": await service.models.cards()})

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        _trace(request)
        return _json(await service.models.card(model))


def _add_operator_routes(app: FastAPI, service: Service) -> None:
    @app.head("/health")
    @app.head("/health/live")
    @app.get("/health")
    @app.get("/health/live")
    async def live(request: Request) -> Response:
        _trace(request)
        return _json({"status": "ok"})

    @app.head("/health/ready")
    @app.get("/health/ready")
    async def ready(request: Request) -> Response:
        _trace(request)
        await _check_ready(service)
        return _json({"status": "ready"})

    @app.get("/version")
    async def show_version(request: Request) -> Response:
        _trace(request)
        return _json({"version": version("bonsai-gateway")})

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        _trace(request)
        return Response(service.metrics.render(), media_type=PROMETHEUS_TEXT)


async def _check_ready(service: Service) -> None:
    if service.drain.leaving:
        raise OverloadedError("Not ready: the gateway is stopping.", code="not_ready")
    parts: dict[str, Policy | RewardModel] = {"policy": service.policy}
    if service.reward is not None:
        parts["reward model"] = service.reward
    answers = await asyncio.gather(*(part.ready() for part in parts.values()))
    missing = [name for name, is_ready in zip(parts, answers, strict=True) if not is_ready]
    if missing:
        raise OverloadedError(f"Not ready: the {' and the '.join(missing)}.", code="not_ready")


def _trace(request: Request) -> Trace:
    """The request's trace, with the route's pattern noted, which is a bounded label."""
    trace: Trace = request.state.trace
    trace.route = request.scope["route"].path
    return trace


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
