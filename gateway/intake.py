"""From a request's bytes to a `Job`: read, checked, its model and its best-of-N known. Nothing is sent
upstream yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from gateway.catalog import Route
from gateway.config import GatewayConfig
from gateway.deadline import client_deadline_s, is_retry
from gateway.errors import BodyTooLargeError, ClientGoneError, InvalidRequestError, MediaTypeError
from gateway.fields import CHAT_FIELDS, COMPLETION_FIELDS, forwardable
from gateway.protocol import (
    Alignment,
    ChatRequest,
    CompletionRequest,
    choose_best_of,
    header_best_of,
    prompts_of,
    validate,
)

Request = ChatRequest | CompletionRequest
CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
GREEDY_BELOW = 1e-5
"""vLLM takes a temperature below this for 0."""
AFFINITY_CHARS = 256
"""Of the first two turns of a chat: prompts that begin alike share a replica's prefix cache."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What this caller may ask for, and gets without asking."""

    default_best_of: int
    max_best_of: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A generation request, understood."""

    path: str
    request: Request
    route: Route
    upstream_body: dict[str, Any]
    ignored: list[str]
    prompts: list[str | list[int]]
    """Of a completion; empty for a chat."""
    n: int
    best_of: int
    """1 where best-of-N does not run."""
    bypass: str | None
    """Why best-of-N does not run although it was asked for."""
    deadline_s: float | None
    """Within how many seconds of its arrival it must be answered, by its options and its headers."""
    retry: bool
    """The client has tried this before."""
    neutralised: int = 0
    """Control tokens in its messages that were made plain text."""

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

    @property
    def affinity(self) -> bytes:
        """Equal for requests whose prompts begin alike, or whose client says so."""
        hint = self.request.prompt_cache_key
        if hint is None:
            hint = repr(_beginning(self))
        return f"{self.route.model}\n{hint}".encode("utf-8", "surrogatepass")


async def read_body(http: HttpRequest, max_bytes: int) -> bytes:
    """The request's body, which says that it is JSON.

    Raises:
        MediaTypeError: not application/json, or compressed.
        BodyTooLargeError: more than `max_bytes`, announced or sent.
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
    return bytes(received)


def understand(
    raw: bytes,
    body: dict[str, Any],
    headers: Mapping[str, str],
    *,
    chat: bool,
    route: Route,
    suffix: int | None,
    config: GatewayConfig,
    terms: Terms,
) -> Job:
    """Check a body and settle what is to be done.

    Args:
        raw: the body as it came.
        suffix: the best_of that the model's name ended in.

    Raises:
        InvalidRequestError: see docs/api.md.
    """
    request: Request = validate(body, ChatRequest) if chat else validate(body, CompletionRequest)
    upstream_body, ignored = forwardable(
        body, CHAT_FIELDS if chat else COMPLETION_FIELDS, config.allow_fields
    )
    neutralised = 0
    if chat:
        upstream_body, neutralised = route.policy.control_text.apply(upstream_body, raw)
    upstream_body["model"] = route.model
    n = request.n or 1
    best_of = choose_best_of(
        n=n,
        body=request.best_of,
        header=header_best_of(headers.get("x-best-of")),
        suffix=suffix,
        default=terms.default_best_of,
    )
    if best_of > terms.max_best_of:
        raise InvalidRequestError(
            f"`best_of` may be at most {terms.max_best_of} here.",
            param="best_of",
            code="best_of_too_large",
        )
    bypass = _bypass(request) if best_of > 1 else None
    job = Job(
        path=CHAT_PATH if chat else COMPLETION_PATH,
        request=request,
        route=route,
        upstream_body=upstream_body,
        ignored=ignored,
        prompts=prompts_of(request) if isinstance(request, CompletionRequest) else [],
        n=n,
        best_of=1 if bypass else best_of,
        bypass=bypass,
        deadline_s=_deadline_s(request, headers),
        retry=is_retry(headers),
        neutralised=neutralised,
    )
    _check_job(job, config)
    return job


def _deadline_s(request: Request, headers: Mapping[str, str]) -> float | None:
    named = [client_deadline_s(headers, stream=bool(request.stream))]
    if request.alignment is not None and request.alignment.deadline_ms is not None:
        named.append(request.alignment.deadline_ms / 1000)
    return min((seconds for seconds in named if seconds is not None), default=None)


def _beginning(job: Job) -> Any:
    """What prompts that share a prefix have in common, at the cost of a look at their first turns."""
    if isinstance(job.request, ChatRequest):
        turns = job.request.messages[:2]
        return [
            turn.content[:AFFINITY_CHARS] if isinstance(turn.content, str) else turn.content for turn in turns
        ]
    first = job.prompts[0]
    return first[:AFFINITY_CHARS]


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
    if not config.rewards:
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
    _check_seeds(job.upstream_body.get("seed"), job.samples)
    if job.request.use_beam_search:
        raise InvalidRequestError(
            "`use_beam_search` and `best_of` above 1 exclude each other.", param="use_beam_search"
        )


def _check_seeds(seed: int | None, samples: int) -> None:
    """Every candidate's seed must be one: -1 means none, and beyond 64 bits a policy refuses it."""
    if seed is not None and (seed + samples > 2**63 or seed < -1 < seed + samples):
        raise InvalidRequestError(
            "Candidate i samples with `seed` + i: none may be -1, which means no seed, or beyond 64 bits.",
            param="seed",
        )
