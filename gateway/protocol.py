"""The wire types: what a request must look like, and which best-of-N it asks for.

Only fields that the gateway reads, or that are known to bring an engine down, are typed here; the rest is
sorted by `gateway.fields`. Types are strict: `"n": true`, `"n": "4"` and `"n": 2.0` are 400s. `null` is
absent.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.constraints import (
    MAX_TOOLS,
    RepetitionDetection,
    ResponseFormat,
    StructuredOutputs,
    Tool,
    check_response_format,
    check_structured_outputs,
    check_tools,
)
from gateway.errors import InvalidRequestError

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(max_length=4096)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Ensemble = Literal["mean", "worst", "uncertainty_weighted"]
OnRewardFailure = Literal["error", "first"]

MAX_MESSAGES = 10_000
MAX_BIASED_TOKENS = 300
_SUFFIX = re.compile(r"(?P<name>.+):best-of-(?P<best_of>[0-9]{1,18})", re.DOTALL)
_DIGITS = re.compile(r"[0-9]{1,18}")
_TOKEN_ID = re.compile(r"[0-9]{1,7}")


class Alignment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request's `alignment` object. An unknown key is a 400: a typo must not disable alignment in
    silence."""

    reward_model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    method: Literal["best_of_n"] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | None = None
    on_reward_failure: OnRewardFailure | None = None
    return_candidates: bool | None = None
    ensemble: Ensemble | None = None
    objectives: dict[Annotated[str, Meta(max_length=64)], float] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's `stream_options`, as far as the gateway reads it."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """What a tool call calls."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call in an assistant's turn, as far as it is judged."""

    id: str | None = None
    function: FunctionCall | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints share."""

    model: str | None = None
    n: Count | None = None
    best_of: Count | None = None
    alignment: Alignment | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: Int64 | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    stop_token_ids: TokenIds | None = None
    allowed_token_ids: Annotated[TokenIds, Meta(min_length=1)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    bad_words: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=128)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASED_TOKENS)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    use_beam_search: bool | None = None
    echo: bool | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=1024)] | None = None
    """A hint for the routing over replicas; it does not go upstream."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    repetition_detection: RepetitionDetection | None = None


class ChatRequest(Request, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None


class CompletionRequest(Request, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class TokenizeRequest(msgspec.Struct, frozen=True):
    """`POST /tokenize` and `/detokenize`: only what routes the request."""

    model: str | None = None


RequestT = TypeVar("RequestT", bound=msgspec.Struct)
_AT_FIELD = re.compile(r"at `\$\.?(?P<path>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")
_EXTRA = re.compile(r"contains unknown field")


def validate(body: dict[str, Any], kind: type[RequestT]) -> RequestT:
    """A body as its type.

    Raises:
        InvalidRequestError: naming the field (`param`) and what was expected, never what was sent.
    """
    try:
        request = msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    if isinstance(request, Request):
        _check(request)
    return request


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a completion request: a text, token ids, or a list of either.

    Raises:
        InvalidRequestError: none of these, or an empty list.
    """
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(type(item) is int for item in prompt):
        return [_token_ids(prompt)]
    if prompt and all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if prompt and all(isinstance(item, list) for item in prompt):
        return [_token_ids(item) for item in prompt]
    raise InvalidRequestError(
        "`prompt` must be a text, a list of texts, a list of token ids, or a list of such lists.",
        param="prompt",
    )


def split_model(model: str) -> tuple[str, int | None]:
    """`NAME:best-of-8` is (NAME, 8); any other name is itself, without a number."""
    match = _SUFFIX.fullmatch(model)
    return (match["name"], int(match["best_of"])) if match else (model, None)


def header_best_of(value: str | None) -> int | None:
    """`X-Best-Of` as a number.

    Raises:
        InvalidRequestError: not a whole number.
    """
    if value is None:
        return None
    if not _DIGITS.fullmatch(value.strip()):
        raise InvalidRequestError("The header X-Best-Of must be a whole number.", param="X-Best-Of")
    return int(value)


def choose_best_of(*, n: int, body: int | None, header: int | None, suffix: int | None, default: int) -> int:
    """How many to sample for `n` choices: the first that is present of body, header, suffix, default.

    A default above 1 becomes max(default, n). With a default of 1 the answer is 1, whatever n is: `n` samples
    pass through unranked.

    Raises:
        InvalidRequestError: what was asked for is below n.
    """
    asked = next((value for value in (body, header, suffix) if value is not None), None)
    if asked is None:
        return max(default, n) if default > 1 else 1
    if asked < max(n, 1):
        raise InvalidRequestError(
            "`best_of` must be at least `n`: it is the number sampled, of which n are returned.",
            param="best_of",
        )
    return asked


def _token_ids(items: list[Any]) -> list[int]:
    if items and all(type(item) is int and 0 <= item < 2**31 for item in items):
        return items
    raise InvalidRequestError("`prompt` has token ids that are no ids, or none at all.", param="prompt")


def _check(request: Request) -> None:
    """What no type can say."""
    _check_logit_bias(request.logit_bias)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("`stream_options` is only for `stream: true`.", param="stream_options")
    check_response_format(request.response_format)
    check_structured_outputs(request.structured_outputs)
    if isinstance(request, ChatRequest):
        check_tools(request.tools, request.tool_choice)
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequestError("`top_logprobs` needs `logprobs: true`.", param="top_logprobs")


def _check_logit_bias(logit_bias: dict[str, float] | None) -> None:
    for key in logit_bias or ():
        if not _TOKEN_ID.fullmatch(key):
            raise InvalidRequestError("The keys of `logit_bias` must be token ids.", param="logit_bias")


def _explain(text: str) -> InvalidRequestError:
    """msgspec's message names types, bounds and paths only; keys of the client's own dictionaries show as
    `...`."""
    match = _AT_FIELD.search(text)
    path = match["path"] if match else ""
    expected = text.split(" - at ")[0]
    if missing := _MISSING.search(text):
        path = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequestError(f"`{path}` is missing.", param=path, code="missing_field")
    if _EXTRA.search(text):
        kind: type[msgspec.Struct] = StructuredOutputs if path == "structured_outputs" else Alignment
        keys = ", ".join(kind.__struct_fields__)
        return InvalidRequestError(
            f"`{path}` has an unknown key; known are: {keys}.", param=path, code="unknown_key"
        )
    if expected.startswith("Invalid enum value"):
        expected = "This is not one of the values that exist"
    return InvalidRequestError(f"`{path}`: {expected}." if path else f"{expected}.", param=path or None)
