"""The HTTP surface: routes, handlers, lifespan. `create_app` takes fakes at its two seams.

python -m gateway --policy-url http://127.0.0.1:8100 --reward-url http://127.0.0.1:8200
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from gateway.admission import Admission, Desk
from gateway.allowance import RATE_HEADERS
from gateway.auth import Auth, key_of
from gateway.catalog import Route, not_served
from gateway.config import ConfigError, GatewayConfig
from gateway.direct import AnswerError, Direct, Handler
from gateway.errors import GatewayError, InvalidRequestError, OverloadedError, from_http_status
from gateway.fields import DETOKENIZE_FIELDS, TOKENIZE_FIELDS, forwardable
from gateway.instance import Instance, Load
from gateway.intake import CHAT_PATH, COMPLETION_PATH, Job, read_body, understand
from gateway.keys import Key
from gateway.logs import Logs
from gateway.metered import Metered
from gateway.metrics import Metrics
from gateway.middleware import Cors, Observe, Trace
from gateway.policy import Call
from gateway.protocol import TokenizeRequest, validate
from gateway.replica_metrics import ReplicaMetrics
from gateway.reward_clients import RewardReplicas
from gateway.runtime import ConnectPolicy, ConnectReward, Runtime
from gateway.service import Exchange, Service
from gateway.streaming import cancelled_when_gone, error_response
from gateway.strict_json import parse_object
from gateway.terms import may_use, terms
from gateway.tracing import Span, Tracer, operation, under
from gateway.vllm_client import VllmPolicy

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": [
        "x-request-id",
        "x-best-of",
        "x-best-of-scored",
        "x-alignment-degraded",
        "x-ignored-fields",
        "x-neutralised-control-text",
        "x-should-retry",
        "retry-after",
        "server-timing",
        *RATE_HEADERS,
    ],
}


def create_app(
    config: GatewayConfig,
    *,
    load: Load | None = None,
    connect_policy: ConnectPolicy | None = None,
    connect_reward: ConnectReward | None = None,
    admission: Admission | None = None,
    log: Logs | None = None,
    examine: bool = False,
) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        load: reads the configuration again for a reload.
        connect_policy, connect_reward: the seams: who makes the clients of what `config` names.
        admission: where several processes share their limits; else this one has a desk of its own.
        log: gets a line per request.
        examine: ask the servers at the start whether they agree, see `gateway.examine`.

    Raises:
        ConfigError: the configuration cannot work.
    """
    metrics = Metrics()
    desk = Metered(admission or Desk(config.limits), config.limits, metrics)
    service = Service(desk, metrics)
    instance = Instance(
        config,
        load or (lambda: config),
        desk,
        metrics,
        connect_policy or (lambda part: VllmPolicy(part, ReplicaMetrics(metrics, "policy"))),
        connect_reward or (lambda part: RewardReplicas(part, ReplicaMetrics(metrics, "reward"))),
        examine=examine,
        tracer=_tracer(config.otlp_traces_endpoint),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await instance.start()
        yield
        await service.drain.at_rest()
        await instance.close()

    app = FastAPI(
        title="Bonsai gateway",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.instance = instance
    answer_error = _add_error_handlers(app, metrics)
    handlers = _add_generation_routes(app, service, instance)
    _add_token_routes(app, service, instance)
    _add_model_routes(app, instance)
    _add_operator_routes(app, service, instance)
    app.add_middleware(Direct, handlers=handlers, answer_error=answer_error)
    app.add_middleware(Auth, instance=instance, metrics=metrics)
    if config.cors_origins:  # around Auth: a browser's preflight brings no key, and a 401 must be readable
        app.add_middleware(Cors, allow_origins=config.cors_origins, **CORS)
    app.add_middleware(Observe, metrics=metrics, drain=service.drain, log=log)
    return app


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> AnswerError:
    @app.exception_handler(GatewayError)
    async def answer_error(request: Request, error: GatewayError) -> Response:
        request.state.trace.error_code = error.code
        metrics.errors.labels(error.code).inc()
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def answer_refusal(request: Request, refusal: HTTPException) -> Response:
        response = await answer_error(request, from_http_status(refusal.status_code, refusal.headers))
        if refusal.headers and "Allow" in refusal.headers:
            response.headers["allow"] = refusal.headers["Allow"]
        return response

    return answer_error


def _add_generation_routes(app: FastAPI, service: Service, instance: Instance) -> dict[str, Handler]:
    """`gateway.direct` takes their POSTs; as routes they answer to other methods."""

    async def chat_completions(request: Request) -> Response:
        return await _generate(request, service, instance, CHAT_PATH)

    async def completions(request: Request) -> Response:
        return await _generate(request, service, instance, COMPLETION_PATH)

    handlers: dict[str, Handler] = {CHAT_PATH: chat_completions, COMPLETION_PATH: completions}
    for path, handler in handlers.items():
        app.add_route(path, handler, methods=["POST"])
    return handlers


async def _generate(request: Request, service: Service, instance: Instance, path: str) -> Response:
    exchange = _begin(request, instance, path)
    async with exchange.stack:
        raw = await read_body(request, exchange.runtime.config.limits.max_body_bytes)
        async with cancelled_when_gone(request.receive, service.drain):
            job = await _understand(request, raw, exchange, chat=path == CHAT_PATH)
            return await service.generate(job, exchange)


def _begin(request: Request, instance: Instance, path: str) -> Exchange:
    """What a request goes by, from its first moment to its last byte: the configuration as it is now."""
    trace: Trace = request.state.trace
    trace.route = path
    stack = AsyncExitStack()
    stack.enter_context(instance.runtime.used())
    key = key_of(request.scope)
    trace.key = key.id if key is not None else None
    if instance.tracer is not None:
        trace.span = _span(instance.tracer, request, path)
        stack.enter_context(under(trace.span))
    return Exchange(instance.runtime, trace.request_id, stack, trace, key)


def _tracer(endpoint: str | None) -> Tracer | None:
    """What is not asked for is not loaded."""
    if endpoint is None:
        return None
    try:
        from gateway.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigError(
            "`otlp_traces_endpoint` needs OpenTelemetry: pip install 'bonsai-gateway[tracing]'"
        ) from error
    return OtlpTracer(endpoint)


def _span(tracer: Tracer, request: Request, path: str) -> Span:
    about = {
        "gen_ai.operation.name": operation(path),
        "gen_ai.provider.name": "bonsai",
        "http.request.method": request.method,
        "http.route": path,
    }
    return tracer.request(operation(path), request.headers, about)


async def _understand(request: Request, raw: bytes, exchange: Exchange, *, chat: bool) -> Job:
    body = parse_object(raw)
    route, suffix = await _route(body.get("model"), exchange)
    config, key = exchange.runtime.config, exchange.key
    return understand(
        raw,
        body,
        request.headers,
        chat=chat,
        route=route,
        suffix=suffix,
        config=config,
        terms=terms(config, key),
    )


async def _route(model: object, exchange: Exchange) -> tuple[Route, int | None]:
    if model is not None and not isinstance(model, str):
        raise InvalidRequestError("`model` must be a text.", param="model")
    exchange.trace.model = "other"
    catalog, key = exchange.runtime.catalog, exchange.key
    route, suffix = await catalog.find(model)
    if model is None and key is not None and not may_use(key, route.name):
        route, suffix = await catalog.find(key.models[0])  # the default among what this key may use
    if not may_use(key, route.name):
        raise not_served()
    exchange.trace.model = route.name
    return route, suffix


def _add_token_routes(app: FastAPI, service: Service, instance: Instance) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await _ask(request, service, instance, TOKENIZE_FIELDS)

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return await _ask(request, service, instance, DETOKENIZE_FIELDS)


async def _ask(request: Request, service: Service, instance: Instance, known: frozenset[str]) -> Response:
    path = request.scope["path"]
    exchange = _begin(request, instance, path)
    config = exchange.runtime.config
    async with exchange.stack:
        raw = await read_body(request, config.limits.max_body_bytes)
        body = parse_object(raw)
        upstream_body, ignored = forwardable(body, known, config.allow_fields)
        async with cancelled_when_gone(request.receive, service.drain):
            route, _ = await _route(validate(body, TokenizeRequest).model, exchange)
            upstream_body, _ = route.policy.control_text.apply(upstream_body, raw)
            upstream_body["model"] = route.model
            call = Call(
                path=path,
                body=upstream_body,
                request_id=exchange.upstream_id,
                work=0,
                asked=exchange.trace.replicas,
            )
            return await service.ask(call, route.policy.client, ignored, exchange)


def _add_model_routes(app: FastAPI, instance: Instance) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _trace(request)
        runtime, key = instance.runtime, key_of(request.scope)
        with runtime.used():
            cards = await runtime.catalog.cards(_most_best_of(runtime, key), partial(may_use, key))
        return _json({"object": "list", "data": cards})

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        _trace(request)
        runtime, key = instance.runtime, key_of(request.scope)
        with runtime.used():
            card = await runtime.catalog.card(model, _most_best_of(runtime, key), partial(may_use, key))
        return _json(card)


def _most_best_of(runtime: Runtime, key: Key | None) -> int:
    return terms(runtime.config, key).max_best_of if runtime.judges else 1


def _add_operator_routes(app: FastAPI, service: Service, instance: Instance) -> None:
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
        missing = await _check_ready(service, instance)
        return _json({"status": "ready"} | ({"missing": missing} if missing else {}))

    @app.get("/version")
    async def show_version(request: Request) -> Response:
        _trace(request)
        return _json({"version": version("bonsai-gateway"), "configuration": instance.fingerprint})

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        _trace(request)
        # OpenMetrics, which has exemplars, for who asks for it.
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # Off the event loop: with several workers it reads files.
        text = await asyncio.to_thread(service.metrics.render, encode)
        return Response(text, headers={"content-type": content_type})


async def _check_ready(service: Service, instance: Instance) -> list[str]:
    """Ready is who can serve something: one policy, and one reward model where there is any. Returns the
    names of those that are missing all the same."""
    if service.drain.leaving:
        raise OverloadedError("Not ready: the gateway is stopping.", code="not_ready")
    runtime = instance.runtime
    with runtime.used():
        missing = await runtime.missing()
    counts = {"policy": len(runtime.policies), "reward model": len(runtime.judges)}
    dead = [kind for kind, count in counts.items() if count and len(missing[kind]) == count]
    if dead:
        raise OverloadedError(f"Not ready: the {' and the '.join(dead)}.", code="not_ready")
    return [name for names in missing.values() for name in names]


def _trace(request: Request) -> Trace:
    """The request's trace, with the route's pattern noted, which is a bounded label."""
    trace: Trace = request.state.trace
    trace.route = request.scope["route"].path
    return trace


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
