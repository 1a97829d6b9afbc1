"""Every error a client can see: the tree, its statuses, and the one body shape.

`{"error": {"message", "type", "param", "code"}}`, at most 4 KiB, never with text that came from the client or
from an upstream. A status of 500 is a bug, always.
"""

from collections.abc import Mapping

import msgspec

MAX_MESSAGE = 1000


class GatewayError(Exception):
    """The base: a subclass fixes status and type, an instance gives message, param and code."""

    status = 500
    type = "internal_error"
    code: str | None = "internal_error"
    retry_after: int | None = None
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message[:MAX_MESSAGE]
        self.param = param
        self.code = code if code is not None else self.code
        self.retry_after = retry_after if retry_after is not None else self.retry_after
        self.should_retry = should_retry if should_retry is not None else self.should_retry

    def body(self) -> bytes:
        """The JSON envelope."""
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    def headers(self) -> dict[str, str]:
        """Retry advice, where there is some."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class InvalidRequestError(GatewayError, ValueError):
    """400: the request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class AuthenticationError(GatewayError):
    """401: no API key, or one that is not known here."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFoundError(GatewayError):
    """404: no such path or model."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class MethodNotAllowedError(GatewayError):
    """405."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLargeError(GatewayError):
    """413."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class RequestTimeoutError(GatewayError):
    """408: the request took too long to arrive."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class UrlTooLongError(GatewayError):
    """414."""

    status = 414
    type = "invalid_request_error"
    code = "url_too_long"


class HeadersTooLargeError(GatewayError):
    """431: too many headers, or too long."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class MediaTypeError(GatewayError):
    """415."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimitError(GatewayError):
    """429: this caller's own rate, concurrency or token budget is used up; the answer says when to come
    back."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after = 1


class ClientGoneError(GatewayError):
    """499, seen only in metrics: the client hung up."""

    status = 499
    type = "client_closed_request"
    code = "client_closed_request"


class UpstreamError(GatewayError):
    """502: the policy server broke, or answered something that makes no sense."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamFailedError(UpstreamError):
    """502: the policy server said itself that it failed."""


class OverloadedError(GatewayError):
    """503: come back later; the answer says when."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"
    retry_after = 1


class StoppingError(OverloadedError):
    """503: the gateway is leaving, and this request outlasted its patience."""

    code = "stopping"

    def __init__(self) -> None:
        super().__init__("The gateway is stopping.")


class UpstreamUnavailableError(OverloadedError):
    """503: the policy server cannot be reached."""

    code = "no_healthy_upstream"


class RewardError(GatewayError):
    """503: the reward model could not be asked, or its answer cannot be used."""

    status = 503
    type = "reward_model_error"
    code = "reward_model_unavailable"
    retry_after = 1


class RewardOverloadedError(RewardError):
    """503: the reward model is well, and refuses for now."""


class DeadlineError(GatewayError):
    """504: the deadline came first. N generations are spent, so clients should not retry by themselves."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class SilentError(DeadlineError):
    """504: a server behind the gateway said nothing for too long."""


def from_http_status(status: int, headers: Mapping[str, str] | None = None) -> GatewayError:
    """Translate the web framework's own refusals (unknown path, wrong method) into ours."""
    if status == 404:
        return NotFoundError("There is no such path here. docs/api.md lists what there is.")
    if status == 405:
        return MethodNotAllowedError(f"This path takes other methods: {(headers or {}).get('Allow', '')}.")
    if status < 500:
        return InvalidRequestError("The request could not be read.")
    return GatewayError("The gateway failed. This is a bug; please report it with the x-request-id.")
