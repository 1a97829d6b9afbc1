"""The worker's side of a desk that workers share: an `Admission` that asks the supervisor's."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.admission import Grant, Ticket
from gateway.config import Limits
from gateway.desk_wire import Ask, Done, Granted, Refused
from gateway.errors import StoppingError


class RemoteDesk:
    """Asks over a channel; `hear` is told the answers."""

    def __init__(self, send: Callable[[Ask | Done], None]) -> None:
        self._send = send
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Grant]] = {}
        self._closed = False

    @asynccontextmanager
    async def hold(self, ticket: Ticket) -> AsyncIterator[Grant]:
        """See `Admission`.

        Raises:
            StoppingError: the supervisor is gone.
        """
        if self._closed:
            raise StoppingError()
        number = next(self._ids)
        grant = await self._granted(number, ticket)
        try:
            yield grant
        finally:
            self._send(Done(number, grant.tokens))

    async def _granted(self, number: int, ticket: Ticket) -> Grant:
        answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send(Ask(number, ticket))
        try:
            return await answer
        except asyncio.CancelledError:
            self._send(Done(number, 0))
            raise
        finally:
            del self._asked[number]

    def hear(self, message: Granted | Refused) -> None:
        """An answer has come; who asked may have gone."""
        answer = self._asked.get(message.id)
        if answer is None or answer.done():
            return
        if isinstance(message, Granted):
            answer.set_result(Grant(message.queue_s, message.rate))
        else:
            answer.set_exception(message.refusal.error())

    def resize(self, limits: Limits) -> None:
        """See `Admission`. The limits are the supervisor's, which has read the new ones itself."""

    def close(self) -> None:
        """The supervisor is gone, and nobody can keep to the limits any more."""
        self._closed = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(StoppingError())
