"""Everything that can go wrong here, and the one body in which a client hears of it.

    RmServerError                 answered as {"error": {"message", "type", "param", "code"}}
      InvalidRequestError     400   also context_length_exceeded
      NotFoundError           404   unknown path or model
      MethodNotAllowedError   405
      BodyTooLargeError       413
      NotJsonError            415
      QueueFullError          429   with Retry-After
      ScoringFailedError      500   the model broke on this batch; the server goes on
      EngineUnavailableError  503   the vLLM that computes this model does not answer as it should
    StartError                    one line on stderr, then its exit code
      ConfigError             2
      CheckpointError         3
      OutOfMemoryError        7

A message is made of fixed words, our own field names and numbers: it never repeats what the client sent.
"""

from __future__ import annotations

import msgspec

MAX_MESSAGE_CHARS = 1000  # keeps every error body far below the promised 4 KiB


class RmServerError(Exception):
    """An error that a client sees. `param` is the field at fault, `code` a stable word for programs."""

    status = 500
    type = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        return {}


class InvalidRequestError(RmServerError):
    status = 400
    type = "invalid_request_error"


class NotFoundError(RmServerError):
    status = 404
    type = "not_found_error"


class MethodNotAllowedError(RmServerError):
    status = 405
    type = "invalid_request_error"


class BodyTooLargeError(RmServerError):
    status = 413
    type = "invalid_request_error"


class NotJsonError(RmServerError):
    status = 415
    type = "invalid_request_error"


class QueueFullError(RmServerError):
    """The bounded queue has no room; `retry_after` is when it should have, in whole seconds."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, retry_after: int) -> None:
        super().__init__("The reward model's queue is full. Try again later.", code="queue_full")
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after)}


class ScoringFailedError(RmServerError):
    def __init__(self) -> None:
        super().__init__("The reward model failed on this request.", code="scoring_failed")


class EngineUnavailableError(RmServerError):
    status = 503

    def __init__(self) -> None:
        super().__init__("The engine of this reward model does not answer.", code="engine_unavailable")


class StartError(Exception):
    """Ends `python -m rm_server` with one line and `exit_code`."""

    exit_code = 1


class ConfigError(StartError):
    exit_code = 2


class CheckpointError(StartError):
    exit_code = 3


class OutOfMemoryError(StartError):
    exit_code = 7


def error_body(error: RmServerError) -> bytes:
    """The JSON envelope of `error`, at most 4 KiB."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message[:MAX_MESSAGE_CHARS],
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )
