"""What SIGTERM, SIGINT and SIGHUP ask of a process that serves, or of the supervisor of several."""

import asyncio
import signal
from typing import Protocol


class Obedient(Protocol):
    """Who can be told to leave and to reload."""

    @property
    def leaving(self) -> bool:
        """Whether it has been told to leave."""

    def leave(self, delay_s: float) -> None:
        """Be unready from now on; stop listening in `delay_s`; finish what is in flight."""

    def hurry(self) -> None:
        """Leave without waiting for anybody."""

    def reload(self) -> None:
        """Read the configuration again."""


def obey(target: Obedient, drain_delay_s: float, *, hurry_on_second: bool = True) -> None:
    """Pass signals on, in the running event loop.

    SIGINT comes from a keyboard, and no load balancer needs time to notice: no delay. A worker does not hurry
    on a second signal: service managers signal every process of a service, and the supervisor, which they
    signal too, passes it on.
    """

    def on_signal(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            target.reload()
        elif target.leaving and hurry_on_second:
            target.hurry()
        else:
            target.leave(0.0 if number == signal.SIGINT else drain_delay_s)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
