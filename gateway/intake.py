"""From a request's bytes to a `Job`: read, checked, its model and its best-of-N known. Nothing is sent
upstream yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from gateway.config import GatewayConfig
from gateway.errors import BodyTooLargeError, ClientGoneError, InvalidRequestError, MediaTypeError
from gateway.fields import CHAT_FIELDS, COMPLETION_FIELDS, forwardable
from gateway.protocol import (
    Alignment,
    ChatRequest,
    CompletionRequest,
    choose_best_of,
    header_best_of,
    prompts_of,
    split_model,
    validate,
)
from gateway.strict_json import parse_object

Request = ChatRequest | CompletionRequest
CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
GREEDY_BELOW = 1e-5
"""vLLM takes a temperature below this for 0."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A generation request, understood."""

    path: str
    request: Request
    model: str
    upstream_body: dict[str, Any]
    ignored: list[str]
    prompts: list[str | list[int]]
    """Of a completion; empty for a chat."""
    n: int
    best_of: int
    """1 where best-of-N does not run."""
    bypass: str | None
    """Why best-of-N does not run although it was asked for."""

    @property
    def chat(self) -> bool:
        """Whether this is a chat."""
        return isinstance(self.request, ChatRequest)

    @property
    def options(self) -> Alignment:
        """The request's own, or none."""
        return self.request.alignment or Alignment()

    @property
    def greedy(self) -> bool:
        """All candidates would be the same."""
        return self.request.temperature is not None and self.request.temperature < GREEDY_BELOW

    @property
    def is_list(self) -> bool:
        """Whether a list of prompts came in, be it a list of one."""
        prompt = None if isinstance(self.request, ChatRequest) else self.request.prompt
        return isinstance(prompt, list) and not isinstance(prompt[0], int)

    @property
    def samples(self) -> int:
        """Samples per prompt that the policy is asked for."""
        return self.n if self.best_of == 1 else 1 if self.greedy else self.best_of

    @property
    def slots(self) -> int:
        """Candidate slots that it takes."""
        return self.samples * max(len(self.prompts), 1)


async def read_json(http: HttpRequest, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        MediaTypeError: not application/json, or compressed.
        BodyTooLargeError: more than `max_bytes`, announced or sent.
        InvalidRequestError: not a strict JSON object.
        ClientGoneError: the client left while sending.
    """
    _check_content_type(http.headers.get("content-type", ""))
    if http.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise MediaTypeError("Send the body uncompressed, without the header Content-Encoding.")
    announced = http.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    received = bytearray()
    try:
        async for data in http.stream():
            received += data
            if len(received) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise ClientGoneError("The client left while it sent its request.") from None
    return parse_object(bytes(received))


def understand(
    body: dict[str, Any],
    headers: Mapping[str, str],
    *,
    chat: bool,
    served: Mapping[str, str],
    config: GatewayConfig,
) -> Job:
    """Check a body and settle what is to be done.

    Args:
        served: every name that a client may use -> the name upstream; "" -> the default model.

    Raises:
        InvalidRequestError: see docs/api.md.
    """
    request: Request = validate(body, ChatRequest) if chat else validate(body, CompletionRequest)
    upstream_body, ignored = forwardable(
        body, CHAT_FIELDS if chat else COMPLETION_FIELDS, config.allow_fields
    )
    model, suffix = resolve_model(request.model, served)
    upstream_body["model"] = model
    n = request.n or 1
    best_of = choose_best_of(
        n=n,
        body=request.best_of,
        header=header_best_of(headers.get("x-best-of")),
        suffix=suffix,
        default=config.default_best_of,
    )
    if best_of > config.limits.max_best_of:
        raise InvalidRequestError(
            f"`best_of` may be at most {config.limits.max_best_of} here.",
            param="best_of",
            code="best_of_too_large",
        )
    bypass = _bypass(request) if best_of > 1 else None
    job = Job(
        path=CHAT_PATH if chat else COMPLETION_PATH,
        request=request,
        model=model,
        upstream_body=upstream_body,
        ignored=ignored,
        prompts=prompts_of(request) if isinstance(request, CompletionRequest) else [],
        n=n,
        best_of=1 if bypass else best_of,
        bypass=bypass,
    )
    _check_job(job, config)
    return job


def resolve_model(model: str | None, served: Mapping[str, str]) -> tuple[str, int | None]:
    """The model's name upstream, and the best_of in its suffix. A name that is not served comes back as it
    is."""
    if model is None:
        return served[""], None
    if model in served:
        return served[model], None
    name, best_of = split_model(model)
    return served.get(name, name), best_of


def _check_content_type(value: str) -> None:
    media_type, _, parameters = value.partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if media_type.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise MediaTypeError("Send JSON in UTF-8, with the header Content-Type: application/json.")


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body may have at most {max_bytes} bytes.")


def _bypass(request: Request) -> str | None:
    if request.echo:
        return "echo"
    most = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    if (request.max_tokens if most is None else most) == 0:
        return "no_new_tokens"
    return "prompt_logprobs" if request.prompt_logprobs is not None else None


def _check_job(job: Job, config: GatewayConfig) -> None:
    most = config.limits.max_candidates_per_request
    if job.slots > most:
        raise InvalidRequestError(
            f"This asks for more than {most} samples: `best_of` (or `n`) times the number of prompts.",
            param="best_of" if job.best_of > 1 else "n",
            code="too_many_candidates",
        )
    if job.best_of > 1:
        _check_best_of(job, config)


def _check_best_of(job: Job, config: GatewayConfig) -> None:
    if config.reward is None:
        raise InvalidRequestError(
            "This gateway has no reward model, so `best_of` above 1 cannot be served.",
            param="best_of",
            code="no_reward_model",
        )
    if job.greedy and job.n > 1:
        raise InvalidRequestError(
            "With `temperature` 0 all candidates are the same: `n` above 1 needs a temperature.",
            param="temperature",
        )
    if job.request.use_beam_search:
        raise InvalidRequestError(
            "`use_beam_search` and `best_of` above 1 exclude each other.", param="use_beam_search"
        )
