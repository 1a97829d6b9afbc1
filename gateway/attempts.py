"""One try on one replica, and at most one more on another, as long as nothing of an answer has come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import aiohttp

from gateway.errors import (
    GatewayError,
    OverloadedError,
    RewardError,
    RewardOverloadedError,
    SilentError,
    UpstreamError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gateway.replicas import FAILURES, Outcome, Replica, Replicas


class DownError(UpstreamUnavailableError):
    """Health probes found the replica down while it was to answer."""


ClientT = TypeVar("ClientT")
AnswerT = TypeVar("AnswerT")


async def ask(
    replicas: Replicas[ClientT],
    question: Callable[[ClientT], Awaitable[AnswerT]],
    *,
    work: int = 1,
    affinity: bytes | None = None,
    asked: list[str] | None = None,
) -> AnswerT:
    """The whole answer of the replica with the least to do, or of another where that one fails.

    Args:
        work: what it costs, in candidates; counted as outstanding until the answer is there.
        affinity: equal for prompts that begin alike, see `Replicas.pick`.
        asked: gets the names of the replicas that are asked.
    """
    replica = replicas.pick(work, affinity)
    try:
        return await _answer(replicas, replica, question, work, asked)
    except GatewayError as error:
        other = _another(replicas, replica, error, work, affinity)
        if other is None:
            raise
    return await _answer(replicas, other, question, work, asked)


@asynccontextmanager
async def attempt(
    replicas: Replicas[ClientT],
    open_answer: Callable[[ClientT], AbstractAsyncContextManager[AnswerT]],
    *,
    work: int = 1,
    affinity: bytes | None = None,
    again: bool = False,
    asked: list[str] | None = None,
) -> AsyncIterator[AnswerT]:
    """An open answer, for the time of the block, of the replica with the least to do, or of another where
    that one fails before its answer begins.

    Args:
        work, affinity, asked: see `ask`; the work is outstanding until the block ends.
        again: this is a repetition already: no further one.
    """
    replica: Replica[ClientT] | None = replicas.pick(work, affinity)
    may_retry = not again
    while replica is not None:
        async with AsyncExitStack() as stack:
            lease = stack.enter_context(replicas.using(replica, work))
            if asked is not None:
                asked.append(replica.name)
            try:
                answer = await stack.enter_async_context(open_answer(replica.client))
            except GatewayError as error:
                lease.note(outcome_of(error))
                replica = _another(replicas, replica, error, work, affinity) if may_retry else None
                if replica is None:
                    raise
                may_retry = False
                continue
            lease.note(Outcome.OK)
            try:
                yield answer
            except GatewayError as error:
                if (outcome := outcome_of(error)) in FAILURES:
                    lease.note(outcome)  # it broke off in the middle
                raise
            return


async def _answer(
    replicas: Replicas[ClientT],
    replica: Replica[ClientT],
    question: Callable[[ClientT], Awaitable[AnswerT]],
    work: int,
    asked: list[str] | None,
) -> AnswerT:
    if asked is not None:
        asked.append(replica.name)
    with replicas.using(replica, work) as lease:
        lease.wait()
        try:
            answer = await question(replica.client)
        except GatewayError as error:
            lease.note(outcome_of(error))
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not lease.abandoned or task is None or task.uncancel() > 0:
                raise
            lease.note(Outcome.TIMEOUT)
            raise DownError("A server behind the gateway does not answer any more.") from None
        lease.note(Outcome.OK)
        return answer


def _another(
    replicas: Replicas[ClientT],
    failed: Replica[ClientT],
    error: GatewayError,
    work: int,
    affinity: bytes | None,
) -> Replica[ClientT] | None:
    """Who is to be asked after that, if anybody."""
    outcome = outcome_of(error)
    if outcome in FAILURES or outcome is Outcome.OVERLOADED:
        return replicas.retry(failed, outcome, work, affinity)
    return None


def outcome_of(error: GatewayError) -> Outcome:
    """What an error says about the replica that it came from."""
    if isinstance(error, RewardError):
        if isinstance(error.__cause__, GatewayError):
            return outcome_of(error.__cause__)
        if isinstance(error.__cause__, TimeoutError):
            return Outcome.TIMEOUT
    if isinstance(error, DownError):
        return Outcome.TIMEOUT
    if isinstance(error, UpstreamUnavailableError):
        return Outcome.UNREACHABLE if isinstance(error.__cause__, _REFUSED) else Outcome.BROKEN
    for kind, outcome in _OUTCOMES:
        if isinstance(error, kind):
            return outcome
    return Outcome.REFUSED


_REFUSED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Nothing was asked. A server that took the request and died has perhaps done part of the work."""
_OUTCOMES: tuple[tuple[type[GatewayError], Outcome], ...] = (
    (OverloadedError, Outcome.OVERLOADED),
    (SilentError, Outcome.TIMEOUT),
    (UpstreamFailedError, Outcome.ERROR),
    (UpstreamError, Outcome.BROKEN),
    (RewardOverloadedError, Outcome.OVERLOADED),
    (RewardError, Outcome.ERROR),
)
