"""One try, and one more elsewhere: what an error says about a replica, and when another is asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.attempts import ask, attempt, outcome_of
from gateway.errors import (
    DeadlineError,
    GatewayError,
    InvalidRequestError,
    OverloadedError,
    RewardError,
    SilentError,
    UpstreamError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gateway.replicas import Outcome, Replicas


class Server:
    """Answers with its name, or fails as it is told."""

    def __init__(self, name: str, *failures: GatewayError) -> None:
        self.name = name
        self.failures = list(failures)
        self.asked = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """An answer."""
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        yield self.name


def replicas(*servers: Server) -> Replicas[Server]:
    """In order of preference: of idle ones without affinity the first is taken."""
    return Replicas({server.name: server for server in servers})


def caused(error: GatewayError, cause: Exception) -> GatewayError:
    """As `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UpstreamError("x"), Outcome.BROKEN),
        (UpstreamFailedError("x"), Outcome.ERROR),
        (SilentError("x"), Outcome.TIMEOUT),
        (DeadlineError("the client's own"), Outcome.REFUSED),
        (OverloadedError("x"), Outcome.OVERLOADED),
        (InvalidRequestError("x"), Outcome.REFUSED),
        (RewardError("x"), Outcome.ERROR),
        (caused(RewardError("x"), SilentError("x")), Outcome.TIMEOUT),
        (caused(UpstreamUnavailableError("x"), aiohttp.ConnectionTimeoutError()), Outcome.UNREACHABLE),
        (caused(UpstreamUnavailableError("x"), aiohttp.ServerDisconnectedError()), Outcome.BROKEN),
    ],
)
def test_what_an_error_says_about_its_replica(error: GatewayError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


@pytest.mark.parametrize("failure", [UpstreamError("x"), SilentError("x"), OverloadedError("x")])
async def test_another_is_asked_once_before_an_answer_begins(failure: GatewayError) -> None:
    first, second = Server("a", failure), Server("b")
    async with attempt(replicas(first, second), Server.open) as answer:
        assert answer == "b"
    assert (first.asked, second.asked) == (1, 1)


async def test_the_second_failure_is_the_answer() -> None:
    servers = [Server(name, UpstreamError(name)) for name in "abc"]
    with pytest.raises(UpstreamError, match="b"):
        async with attempt(replicas(*servers), Server.open):
            pass
    assert [server.asked for server in servers] == [1, 1, 0]


@pytest.mark.parametrize(
    ("failure", "again"), [(InvalidRequestError("x"), False), (UpstreamError("x"), True)]
)
async def test_a_refusal_is_the_clients_and_a_repetition_is_not_repeated(
    failure: GatewayError, again: bool
) -> None:
    first, second = Server("a", failure), Server("b")
    with pytest.raises(type(failure)):
        async with attempt(replicas(first, second), Server.open, again=again):
            pass
    assert second.asked == 0


class Hanging(Server):
    """Takes the question and never answers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reached = asyncio.Event()
        self.left = 0

    async def answer(self) -> str:
        """Never."""
        self.asked += 1
        self.reached.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self.left += 1


async def answer(server: Server) -> str:
    """A whole answer."""
    if isinstance(server, Hanging):
        return await server.answer()
    async with server.open() as name:
        return name


async def test_a_replica_that_probes_find_down_is_waited_for_no_longer() -> None:
    hanging, well = Hanging("a"), Server("b")
    both = replicas(hanging, well)
    work = asyncio.create_task(ask(both, answer, work=3))
    await hanging.reached.wait()
    both.probed(both.all[0], healthy=False)
    assert await work == "b"
    assert (hanging.left, both.all[0].outstanding, len(both.all[0].leases)) == (1, 0, 0)


async def test_where_all_are_down_that_is_the_answer() -> None:
    hanging = Hanging("a")
    alone = replicas(hanging)
    work = asyncio.create_task(ask(alone, answer))
    await hanging.reached.wait()
    alone.probed(alone.all[0], healthy=False)
    with pytest.raises(UpstreamUnavailableError):
        await work


async def test_a_client_that_leaves_while_the_replica_is_given_up_is_gone() -> None:
    hanging, well = Hanging("a"), Server("b")
    both = replicas(hanging, well)
    work = asyncio.create_task(ask(both, answer))
    await hanging.reached.wait()
    work.cancel()
    both.probed(both.all[0], healthy=False)
    with pytest.raises(asyncio.CancelledError):
        await work
    assert well.asked == 0


async def test_what_breaks_in_the_middle_counts_against_the_replica_and_is_not_retried() -> None:
    both = replicas(Server("a"), Server("b"))
    with pytest.raises(UpstreamError):
        async with attempt(both, Server.open):
            raise UpstreamError("broke off")
    assert [replica.failures for replica in both.all] == [1, 0]
    assert [replica.outstanding for replica in both.all] == [0, 0]


async def test_what_the_caller_breaks_does_not() -> None:
    both = replicas(Server("a"), Server("b"))

    async def stumble() -> None:
        async with attempt(both, Server.open, work=8):
            assert both.all[0].outstanding == 8
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert [(replica.failures, replica.outstanding) for replica in both.all] == [(0, 0), (0, 0)]
