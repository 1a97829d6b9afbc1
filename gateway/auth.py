"""Who may come in: a guard around the whole application, closed unless a path is listed as open.

Without a keys file everybody may do everything. With one each request needs `Authorization: Bearer SECRET`,
on paths that do not exist, too, so that nobody learns without a key what there is. Every refusal is the same
401, whatever is wrong with what was sent.
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import AuthenticationError
from gateway.instance import Instance
from gateway.keys import Key, KeyRing
from gateway.metrics import Metrics

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""Load balancers have no key."""
METRICS_PATHS = frozenset({"/metrics", "/version"})
"""Open where the operator says so (`public_metrics`)."""


class Auth:
    """Lets a request through with its key in `scope["state"]["key"]`, or answers 401. Stands inside Observe,
    whose trace gets the key's id."""

    def __init__(self, app: ASGIApp, instance: Instance, metrics: Metrics) -> None:
        self._app = app
        self._instance = instance
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        ring = self._instance.keys
        if ring is None or scope["type"] == "lifespan" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        key = _find(ring, scope)
        if key is not None:
            scope["state"]["key"] = key
            scope["state"]["trace"].key = key.id
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._refuse(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_open(self, path: str) -> bool:
        """By the path that routing goes by, not by a URL that takes the client's Host header in."""
        public = self._instance.runtime.config.public_metrics
        return path in OPEN_PATHS or (public and path in METRICS_PATHS)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = AuthenticationError(
            "This gateway needs an API key that is in force, as the header Authorization: Bearer KEY."
        )
        self._metrics.errors.labels(error.code).inc()
        scope["state"]["trace"].error_code = error.code
        headers = error.headers() | {"www-authenticate": "Bearer"}
        await Response(error.body(), error.status, headers, "application/json")(scope, receive, send)


def key_of(scope: Scope) -> Key | None:
    """Whose request this is; None where everybody may come in."""
    key: Key | None = scope.get("state", {}).get("key")
    return key


def _find(ring: KeyRing, scope: Scope) -> Key | None:
    """The key in the one Authorization header that there may be."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) != 1:
        return None
    scheme, _, secret = sent[0].partition(b" ")
    return ring.find(secret.strip(b" ")) if scheme.lower() == b"bearer" else None
