"""The seam to what samples: the `Policy` that the rest of the gateway knows, and the words of its streams.

`gateway.vllm_client` is the real one: vLLM's OpenAI servers.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from gateway.upstream import MAX_TOKENS

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class Usage(msgspec.Struct):
    """Token counts as the policy reports them; in chunks of a sampling stream, of one candidate so far."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens | None = None
    prompt_tokens_details: dict[str, Any] | None = None


class FunctionPiece(msgspec.Struct):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(msgspec.Struct):
    """A piece of the tool call `index`."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionPiece | None = None


class Delta(msgspec.Struct):
    """What the gateway reads of a chat delta; the rest of it passes as it came."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChoiceDelta(msgspec.Struct):
    """A piece of one candidate: `delta` in a chat, `text` in a completion."""

    index: int
    delta: dict[str, Any] | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """One event of a sampling stream."""

    choices: list[ChoiceDelta]
    usage: Usage | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to a policy."""

    path: str
    body: dict[str, Any]
    request_id: str
    work: int = 1
    """Candidates that it samples."""
    affinity: bytes = b""
    """Equal for requests whose prompts begin alike: the replica that saw the last one has them cached."""
    again: bool = False
    """Lost work that is done again: another replica's turn, within the retry budget."""
    asked: list[str] = field(default_factory=list)
    """Gets the names of the replicas that are asked, in order."""


class Answer(NamedTuple):
    """A whole successful answer of the policy's, which is JSON."""

    content: bytes
    usage: dict[str, Any]
    """As it reports it; empty where it does not."""


class Reply(Protocol):
    """An open successful answer of the policy's, a stream, whose first bytes have arrived."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""

    async def finish(self) -> None:
        """After the last event: let the connection end by itself, so that it can be used again."""


class Policy(Protocol):
    """What samples. Cancelling `fetch`, leaving `open` or closing `sample` early aborts the work upstream."""

    async def fetch(self, call: Call) -> Answer:
        """The whole answer; raises GatewayError where it is no successful one."""

    def open(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """The open answer to a call for a stream; raises GatewayError where it is none."""

    def sample(self, call: Call) -> AsyncGenerator[list[Chunk], None]:
        """Chunks of `call.work` candidates, those that arrived together in one list."""

    def may_sample_again(self) -> bool:
        """Whether work that was lost with one server may be done again by another: there is a healthy one,
        and the budget for retries allows it."""

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the served models."""

    async def ready(self) -> bool:
        """Whether it can take requests."""

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a short GET, of the first server that answers."""

    async def start(self) -> None:
        """Begin to watch over its replicas."""

    async def close(self) -> None:
        """Give connections back."""
