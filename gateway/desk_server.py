"""The supervisor's side of a desk that workers share: one `Counter` per worker."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.admission import Admission, Refusal, RefusedError
from gateway.desk_wire import Ask, Done, Granted, Refused

SECOND_LOOK_S = 0.02
"""A client that has its answer can ask again, of another worker, before word of its end is here: a key that
has too much under way is looked at twice, so that who asks for one thing at a time is not refused."""


class Counter:
    """Asks the desk on behalf of one worker, and gives back what that one leaves behind when it dies."""

    def __init__(self, desk: Admission, answer: Callable[[Granted | Refused], None]) -> None:
        self._desk = desk
        self._answer = answer
        self._holds: dict[int, _Hold] = {}

    def ask(self, ask: Ask) -> None:
        """A request of the worker asks for its ticket."""
        hold = _Hold(ask)
        task = asyncio.create_task(self._serve(hold))
        task.add_done_callback(lambda _: self._holds.pop(ask.id))
        hold.give_up = task.cancel
        self._holds[ask.id] = hold

    def done(self, done: Done) -> None:
        """It has ended, or does not want to wait any more. Its refusal may have crossed this."""
        hold = self._holds.get(done.id)
        if hold is not None:
            hold.end(done.tokens)

    def close(self) -> None:
        """The worker is gone. Nobody knows how many tokens its requests have used."""
        for hold in self._holds.values():
            hold.end(0)

    async def _serve(self, hold: "_Hold") -> None:
        refusal = await self._hold(hold)
        if refusal is not None and refusal.reason == "key_concurrency":
            await asyncio.sleep(SECOND_LOOK_S)
            refusal = await self._hold(hold)
        if refusal is not None:
            self._answer(Refused(hold.ask.id, refusal))

    async def _hold(self, hold: "_Hold") -> Refusal | None:
        """Hold the ticket until the request has ended, or say why not."""
        try:
            async with self._desk.hold(hold.ask.ticket) as grant:
                hold.tokens = asyncio.get_running_loop().create_future()
                self._answer(Granted(hold.ask.id, grant.queue_s, grant.rate))
                grant.charge(await hold.tokens)
        except RefusedError as error:
            return error.refusal
        return None


@dataclass(eq=False)
class _Hold:
    """What one request waits for or has."""

    ask: Ask
    give_up: Callable[[], object] = field(init=False)
    tokens: asyncio.Future[int] | None = None
    """There once the ticket is granted; set when the request has ended."""

    def end(self, tokens: int) -> None:
        if self.tokens is None:
            self.give_up()
        elif not self.tokens.done():
            self.tokens.set_result(tokens)
