"""The supervisor's side of a desk that workers share: one `Counter` per worker."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.admission import Admission, RefusedError
from gateway.desk_wire import Ask, Done, Granted, Refused


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
        try:
            async with self._desk.hold(hold.ask.ticket) as grant:
                hold.tokens = asyncio.get_running_loop().create_future()
                self._answer(Granted(hold.ask.id, grant.queue_s, grant.rate))
                grant.charge(await hold.tokens)
        except RefusedError as error:
            self._answer(Refused(hold.ask.id, error.refusal))


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
