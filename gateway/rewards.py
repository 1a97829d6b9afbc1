"""The seam to the server that judges.

`RewardModel` is what the rest of the gateway knows. `ScoreServer` speaks to this project's rm_server,
`PoolingServer` to a reward model on vLLM. What comes back is checked here: a wrong count fails the call, a
reward that is no finite number is None, which leaves its candidate out.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec

from gateway.config import RewardConfig
from gateway.errors import GatewayError, InvalidRequestError, RewardError
from gateway.policy import parse_models
from gateway.upstream import UNREADABLE, HttpUpstream, read_at_most, token_count

MAX_ANSWER_BYTES = 1024 * 1024
"""A reward takes some 20 bytes; this bounds what a broken reward server can cost."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a reward model is asked: how good is each of `responses` after `messages`?"""

    messages: Messages
    responses: Sequence[str]
    model: str | None = None
    ensemble: str | None = None
    objectives: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Rewards in the order of the question's responses; None where there is none."""

    rewards: Sequence[float | None]
    tokens: int = 0
    model: str | None = None
    version: str | None = None
    out_of_distribution: Sequence[bool | float | None] | None = None
    """Per response, where the server reports it."""


class TooLongError(RewardError):
    """The question holds more than the reward model can read."""


class RewardModel(Protocol):
    """A server that judges."""

    name: str | None

    async def score(self, question: Question) -> Verdict:
        """Judge; raises TooLongError or RewardError. Cancelling it aborts the call."""

    async def models(self) -> list[str]:
        """The names it serves."""

    async def ready(self) -> bool:
        """Whether it can judge now."""

    async def close(self) -> None:
        """Give connections back."""


class RewardServer:
    """What both kinds of server share: a pool, a timeout, and the translation of failures."""

    def __init__(self, config: RewardConfig) -> None:
        self.name = config.name
        self._timeout_s = config.timeout_s
        self._http = HttpUpstream(config.url, config.timeout_s)

    async def models(self) -> list[str]:
        """See RewardModel."""
        status, body = await self._http.get("/v1/models")
        return [card["id"] for card in parse_models(status, body)]

    async def ready(self) -> bool:
        """See RewardModel."""
        try:
            status, _ = await self._http.get(self.ready_path)
        except GatewayError:
            return False
        return status == 200

    async def close(self) -> None:
        """See RewardModel."""
        await self._http.close()

    ready_path = "/health/ready"

    async def _ask(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.post(path, msgspec.json.encode(question)) as answer,
            ):
                return _parse(answer.status, await read_at_most(answer, MAX_ANSWER_BYTES))
        except (RewardError, InvalidRequestError):
            raise  # our own reading of the answer
        except (GatewayError, TimeoutError, aiohttp.ClientError) as error:
            raise RewardError("The reward model does not answer.") from error


class ScoreServer(RewardServer):
    """rm_server: `POST /score`."""

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        body = {
            "model": question.model or self.name,
            "messages": list(question.messages),
            "responses": list(question.responses),
            "ensemble": question.ensemble,
            "objectives": question.objectives,
        }
        answer = await self._ask("/score", {name: value for name, value in body.items() if value is not None})
        count = len(question.responses)
        return Verdict(
            rewards=_rewards(answer.get("scores"), count),
            tokens=_tokens(answer),
            model=_text(answer.get("model")),
            version=_text(answer.get("version")),
            out_of_distribution=_per_response(answer.get("out_of_distribution"), count),
        )


class PoolingServer(RewardServer):
    """A reward model on vLLM: `POST /pooling`, one conversation a call, raw logits less the configured
    offset."""

    ready_path = "/health"

    def __init__(self, config: RewardConfig) -> None:
        super().__init__(config)
        self._offset = config.offset

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        if question.ensemble is not None or question.objectives is not None:
            raise InvalidRequestError(
                "The reward model on this server knows neither `ensemble` nor `objectives`.",
                param="alignment",
            )
        try:
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self._logit(question, response)) for response in question.responses
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        answers = [call.result() for call in calls]
        rewards = [None if logit is None else logit - self._offset for logit, _ in answers]
        return Verdict(
            rewards=rewards, tokens=sum(tokens for _, tokens in answers), model=question.model or self.name
        )

    async def _logit(self, question: Question, response: str) -> tuple[float | None, int]:
        messages = [*question.messages, {"role": "assistant", "content": response}]
        body = {"model": question.model or self.name, "messages": messages, "use_activation": False}
        answer = await self._ask("/pooling", body)
        try:
            values = answer["data"][0]["data"]
        except (LookupError, TypeError):
            values = None
        return _rewards(values, 1)[0], _tokens(answer)


def connect(config: RewardConfig) -> RewardModel:
    """The client for a configured reward server."""
    return ScoreServer(config) if config.kind == "score" else PoolingServer(config)


def _parse(status: int, body: bytes) -> dict[str, Any]:
    # The standard library's reader, because a broken reward model may well answer NaN.
    try:
        answer = json.loads(body)
    except UNREADABLE:
        answer = None
    if status == 400 and _error_code(answer) == "context_length_exceeded":
        raise TooLongError("The conversation is longer than the reward model can read.")
    if status in {400, 404, 422}:
        raise InvalidRequestError(
            "The reward model refused the question: see its `reward_model`, `ensemble` and `objectives`.",
            param="alignment",
            code="reward_model_refused",
        )
    if status != 200 or not isinstance(answer, dict):
        raise RewardError("The reward model failed.")
    return answer


def _error_code(answer: Any) -> Any:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return None
    if "maximum context length" in str(error.get("message")):
        return "context_length_exceeded"  # vLLM says it in words only
    return error.get("code")


def _rewards(scores: Any, count: int) -> list[float | None]:
    if not isinstance(scores, list) or len(scores) != count:
        raise RewardError("The reward model answered with a wrong number of rewards.")
    return [_finite(score) for score in scores]


def _finite(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        value = float(score)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return token_count(usage.get("tokens", usage.get("total_tokens")))


def _text(value: Any) -> str | None:
    return value[:256] if isinstance(value, str) and value.isprintable() else None


def _per_response(value: Any, count: int) -> Sequence[bool | float | None] | None:
    if value is None:
        return None
    values = value if isinstance(value, list) and len(value) == count else [value] * count
    return [item if isinstance(item, bool) else _finite(item) for item in values]
