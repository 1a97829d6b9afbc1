"""`--workers K`: keeps K processes that serve, and the desk whose limits hold across them.

Workers are fresh interpreters, not forks: a fork would carry along this process's event loop, its sockets
and its libraries' state, and half a second's start is quick enough for a replacement. They inherit the
listening socket, so that a connection that waits to be accepted outlives any of them. One that dies is
replaced under its number, after a pause where it had not lived for long. Configuration is read here alone:
all workers go by the same one, and a replacement gets the last that was good.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvloop

from gateway.admission import Desk
from gateway.config import ConfigError
from gateway.desk_server import Counter
from gateway.desk_wire import Ask, Channel, Done, FromWorker, Hurry, Leave, Reload, Start, ToWorker, Up
from gateway.drain import FAREWELL_S
from gateway.flags import Load, ServerOptions
from gateway.metrics import forget
from gateway.signals import obey

logger = logging.getLogger("gateway.supervisor")
STABLE_S = 10.0
"""Who has lived that long is replaced at once when it dies."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
MOST_DOUBLINGS = 16
KILL_AFTER_S = 3.0
"""What a worker may take longer than its drain: then it is stuck."""


def supervise(
    load: Load, options: ServerOptions, listener: socket.socket, announce: Callable[[], None]
) -> int:
    """Serve with several workers until told to leave; the exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="bonsai-gateway-", ignore_cleanup_errors=True) as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(Supervisor(load, options, listener, Path(folder)).run(announce))


def pause_s(deaths: int) -> float:
    """How long to wait after so many deaths in a row of workers that had not lived for long.

    0 -> 0, 1 -> 0.25, 2 -> 0.5, ... 30.
    """
    doublings = min(deaths - 1, MOST_DOUBLINGS)
    return min(FIRST_PAUSE_S * 2.0**doublings, LONGEST_PAUSE_S) if deaths else 0.0


class Supervisor:
    """Starts, replaces and ends workers, and grants their requests' tickets."""

    def __init__(self, load: Load, options: ServerOptions, listener: socket.socket, folder: Path) -> None:
        self._load = load
        self._options = options
        self._listener = listener
        self._folder = folder
        self._config = load()
        self._desk = Desk(self._config.limits)
        self._channels: dict[int, Channel[FromWorker]] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ups: set[int] = set()
        self._left = asyncio.Event()
        self._exit_code = 0

    @property
    def leaving(self) -> bool:
        """Whether it has been told to leave."""
        return self._left.is_set()

    def leave(self, delay_s: float) -> None:
        """Have all workers be unready from now on, stop listening in `delay_s`, and drain."""
        self._end(Leave(delay_s), delay_s + self._options.drain_s)

    def hurry(self) -> None:
        """Have all workers leave without waiting for anybody."""
        self._end(Hurry(), 0.0)

    def reload(self) -> None:
        """Read the configuration again; workers keep theirs, and say so, where the new one is bad."""
        try:
            self._config = self._load()
        except ConfigError as error:
            self._tell(Reload(error=str(error)))
            return
        self._desk.resize(self._config.limits)
        self._tell(Reload(config=self._config))

    async def run(self, announce: Callable[[], None]) -> int:
        """Until told to leave, or until the first start has failed; the exit code.

        The first worker starts alone: what is wrong with all of them is said once.
        """
        obey(self, self._options.drain_delay_s)
        async with asyncio.TaskGroup() as keepers:

            def start(number: int) -> None:
                keepers.create_task(self._keep(number, when_up))

            def when_up(number: int) -> None:
                if number in self._ups:
                    return
                self._ups.add(number)
                if number == 0:
                    for other in range(1, self._options.workers):
                        start(other)
                if self._all_were_up and not self.leaving:
                    announce()

            start(0)
        return self._exit_code

    @property
    def _all_were_up(self) -> bool:
        return len(self._ups) == self._options.workers

    async def _keep(self, number: int, when_up: Callable[[int], None]) -> None:
        """Have a worker of this number, again and again."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._left.is_set():
            began = loop.time()
            try:
                code = await self._live(number, when_up)
            except OSError as error:  # no process or no file to be had just now: as if it had died at once
                logger.error("worker %d cannot start: %s", number, error.strerror)
                code = 1
            if self._left.is_set():
                return
            if not self._all_were_up:
                self._exit_code = max(code, 1)
                self.hurry()
                return
            deaths = deaths + 1 if loop.time() - began < STABLE_S else 0
            pause = pause_s(deaths)
            logger.warning("worker %d ended (%s); another starts in %g s", number, _reason(code), pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), pause)

    async def _live(self, number: int, when_up: Callable[[int], None]) -> int:
        """One worker's life; its exit code."""
        ours, theirs = socket.socketpair()
        channel: Channel[FromWorker]
        counter: Counter

        def hear(message: FromWorker) -> None:
            match message:
                case Ask():
                    counter.ask(message)
                case Done():
                    counter.done(message)
                case Up():
                    when_up(number)

        channel = Channel(FromWorker, hear)
        counter = Counter(self._desk, channel.send)
        with theirs:
            await channel.connect(ours)
            if self.leaving:
                return 0
            channel.send(self._start(number))
            self._channels[number] = channel
            try:
                process = self._processes[number] = await self._spawn(theirs)
            except OSError:
                self._bury(number, counter, channel)
                raise
        try:
            return await process.wait()
        finally:
            self._bury(number, counter, channel)

    def _bury(self, number: int, counter: Counter, channel: Channel[FromWorker]) -> None:
        """What a worker held is free again."""
        counter.close()
        channel.close()
        del self._channels[number]
        self._processes.pop(number, None)
        forget(self._folder, number)

    def _start(self, number: int) -> Start:
        return Start(
            number=number,
            listener=self._listener.fileno(),
            folder=str(self._folder),
            options=self._options,
            config=self._config,
        )

    async def _spawn(self, end: socket.socket) -> asyncio.subprocess.Process:
        """A process in a session of its own: Ctrl-C at the terminal reaches the supervisor alone."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.worker", str(end.fileno())),
            pass_fds=(end.fileno(), self._listener.fileno()),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, message: ToWorker) -> None:
        for channel in self._channels.values():
            channel.send(message)

    def _end(self, message: Leave | Hurry, within_s: float) -> None:
        """Our own copy of the listening socket must go, or connections would wait in it for nobody."""
        self._left.set()
        self._listener.close()
        self._tell(message)
        asyncio.get_running_loop().call_later(within_s + FAREWELL_S + KILL_AFTER_S, self._kill)

    def _kill(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()


def _reason(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
