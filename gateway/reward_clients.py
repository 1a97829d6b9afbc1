"""The servers that judge: this project's rm_server, a reward model on vLLM, an OpenRLHF server.

What comes back is checked here: a wrong count fails the call, a reward that is no finite number is None,
which leaves its candidate out.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway import tracing
from gateway.attempts import DownError, ask
from gateway.config import RewardConfig, RewardKind
from gateway.control_text import ControlText
from gateway.errors import GatewayError, InvalidRequestError, RewardError, RewardOverloadedError
from gateway.health_watch import HealthWatch
from gateway.replicas import Observer, Replicas
from gateway.rewards import Question, TooLongError, Verdict
from gateway.templates import compile_template, render
from gateway.upstream import UNREADABLE, HttpUpstream, read_at_most, token_count

_CONTROL_TEXT = ControlText("neutralise")
MAX_ANSWER_BYTES = 1024 * 1024
"""A reward takes some 20 bytes; this bounds what a broken reward server can cost."""


class RewardServer:
    """What every kind of server shares: a pool, a timeout, and the translation of failures."""

    ready_path = "/health"

    def __init__(self, config: RewardConfig, url: str) -> None:
        self._name = config.upstream_model
        self._offset = config.offset
        self._timeout_s = config.timeout_s
        self._url = url
        self._http = HttpUpstream(url, config.timeout_s, config.api_key)

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        raise NotImplementedError

    async def healthy(self) -> bool:
        """Whether it can judge now."""
        try:
            status, _ = await self._http.get(self.ready_path)
        except GatewayError:
            return False
        return status == 200

    async def close(self) -> None:
        """Give connections back."""
        await self._http.close()

    async def _ask(self, path: str, question: dict[str, Any], count: int) -> dict[str, Any]:
        with tracing.call(self._url, path, question.get("model"), {"bonsai.texts": count}) as span:
            return await self._answer(path, question, span.headers())

    async def _answer(self, path: str, question: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.post(path, msgspec.json.encode(question), headers) as answer,
            ):
                if answer.status == 404 and question.get("model") in {None, self._name}:
                    raise RewardError("The reward model is not there.")  # the operator's name or address
                return _parse(answer.status, await read_at_most(answer, MAX_ANSWER_BYTES))
        except (RewardError, InvalidRequestError):
            raise  # our own reading of the answer
        except (GatewayError, TimeoutError) as error:
            raise RewardError("The reward model does not answer.") from error


class ScoreServer(RewardServer):
    """rm_server: `POST /score`."""

    ready_path = "/health/ready"

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        body = {
            "model": question.model or self._name,
            "messages": list(question.messages),
            "responses": list(question.responses),
            "ensemble": question.ensemble,
            "objectives": question.objectives,
        }
        count = len(question.responses)
        asked = {name: value for name, value in body.items() if value is not None}
        answer = await self._ask("/score", asked, count)
        return Verdict(
            rewards=_rewards(answer.get("scores"), count),
            tokens=_tokens(answer),
            model=_text(answer.get("model")),
            version=_text(answer.get("version")),
            out_of_distribution=_per_response(answer.get("out_of_distribution"), count),
            spread=_spread(answer.get("spread"), count),
        )


class PoolingServer(RewardServer):
    """A reward model on vLLM: `POST /pooling`, one conversation a call, raw logits less the configured
    offset."""

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        _refuse_options(question)
        try:
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self._logit(question, response)) for response in question.responses
                ]
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__  # which says what to make of the replica
        answers = [call.result() for call in calls]
        rewards = [None if logit is None else logit - self._offset for logit, _ in answers]
        return Verdict(
            rewards=rewards, tokens=sum(tokens for _, tokens in answers), model=question.model or self._name
        )

    async def _logit(self, question: Question, response: str) -> tuple[float | None, int]:
        messages = _plain([*question.messages, {"role": "assistant", "content": response}])
        body = {"model": question.model or self._name, "messages": messages, "use_activation": False}
        answer = await self._ask("/pooling", body, 1)
        try:
            values = answer["data"][0]["data"]
        except (LookupError, TypeError):
            values = None
        return _rewards(values, 1)[0], _tokens(answer)


class GetRewardServer(RewardServer):
    """OpenRLHF's reward server: `POST /get_reward` with rendered texts, raw rewards less the configured
    offset.

    Its answers name no model and count no tokens.
    """

    def __init__(self, config: RewardConfig, url: str) -> None:
        super().__init__(config, url)
        assert config.template is not None
        self._template = compile_template(config.template)

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        _refuse_options(question)
        conversations = [
            _plain([*question.messages, {"role": "assistant", "content": response}])
            for response in question.responses
        ]
        texts = [render(self._template, conversation) for conversation in conversations]
        answer = await self._ask("/get_reward", {"query": texts, "prompts": texts}, len(texts))
        rewards = _rewards(answer.get("rewards"), len(texts))
        return Verdict(
            rewards=[None if reward is None else reward - self._offset for reward in rewards],
            model=question.model or self._name,
        )

    async def healthy(self) -> bool:
        """Whether it listens: it has no health path, and any answer to one shows that it is there."""
        try:
            await self._http.get(self.ready_path)
        except GatewayError:
            return False
        return True


KINDS: dict[RewardKind, type[RewardServer]] = {
    "score": ScoreServer,
    "pooling": PoolingServer,
    "get_reward": GetRewardServer,
}


class RewardReplicas:
    """The replicas of one reward model. A question that fails on one may be asked of another, once."""

    def __init__(self, config: RewardConfig, observer: Observer | None = None) -> None:
        kind = KINDS[config.kind]
        servers = {url: kind(config, url) for url in config.urls}
        self._clients = tuple(servers.values())
        self._replicas = Replicas(servers, observer=observer)
        self._watch = HealthWatch(self._replicas, RewardServer.healthy)

    async def score(self, question: Question) -> Verdict:
        """See RewardModel."""
        work = len(question.responses)
        try:
            return await ask(self._replicas, lambda server: server.score(question), work=work)
        except DownError as error:
            raise RewardError("The reward model does not answer any more.") from error

    async def ready(self) -> bool:
        """See RewardModel. One healthy replica is enough."""
        answers = await asyncio.gather(*(server.healthy() for server in self._clients))
        return any(answers)

    async def start(self) -> None:
        """Watch the replicas' health."""
        self._watch.start()

    async def close(self) -> None:
        """See RewardModel."""
        await self._watch.stop()
        self._replicas.close()
        for server in self._clients:
            await server.close()


def _plain(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For servers that tokenise rendered text: the judge gets no control tokens that somebody wrote."""
    return [{**message, "content": _CONTROL_TEXT.text(message["content"])} for message in messages]


def _refuse_options(question: Question) -> None:
    if question.ensemble is not None or question.objectives is not None:
        raise InvalidRequestError(
            "The reward model on this server knows neither `ensemble` nor `objectives`.",
            param="alignment",
        )


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
    if status in {429, 503}:
        raise RewardOverloadedError("The reward model is overloaded.")
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


def _spread(value: Any, count: int) -> Sequence[float | None] | None:
    return [_finite(item) for item in value] if isinstance(value, list) and len(value) == count else None


def _per_response(value: Any, count: int) -> Sequence[bool | float | None] | None:
    if value is None:
        return None
    values = value if isinstance(value, list) and len(value) == count else [value] * count
    return [item if isinstance(item, bool) else _finite(item) for item in values]
