"""What a person sees while the stack starts, and what to try once it is up."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.launch_stack import Status

QUIET_S = 10.0


class Display(Protocol):
    """Shows the children's states; a context manager, so that a live one can tidy up after itself."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, statuses: list[Status]) -> None:
        """Called a few times a second."""


def make_display() -> Display:
    """A live table on a terminal, lines elsewhere."""
    return LiveDisplay(Console()) if sys.stdout.isatty() else PlainDisplay()


class LiveDisplay:
    """A table that is redrawn: name, state, seconds, last line of the log."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, statuses: list[Status]) -> None:
        table = Table.grid(padding=(0, 2))
        for status in statuses:
            colour = {"ready": "green", "starting": "yellow", "waiting": "dim"}[status.state]
            seconds = f"{status.seconds:.0f} s" if status.state != "waiting" else ""
            last_line = Text(_brief(status.last_line))  # a log is no markup
            table.add_row(status.name, Text(status.state, style=colour), seconds, last_line)
        self._live.update(table)


class PlainDisplay:
    """A line at each change, and every ten seconds what a slow child last said."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, statuses: list[Status]) -> None:
        quiet = time.monotonic() - self._last > QUIET_S
        for status in statuses:
            changed = self._states.get(status.name, "waiting") != status.state
            if changed or (quiet and status.state == "starting"):
                print(_line(status), flush=True)
                self._last = time.monotonic()
            self._states[status.name] = status.state


def _line(status: Status) -> str:
    said = f": {_brief(status.last_line)}" if status.last_line else ""
    return f"{status.name} {status.state} ({status.seconds:.0f} s){said}"


def _brief(line: str) -> str:
    return line if len(line) <= 90 else f"{line[:87]}..."


def things_to_try(url: str, model: str, *, has_reward: bool) -> str:
    """The address, and three commands that work as they stand."""
    best_of = ', "best_of": 4' if has_reward else ""
    extra_body = ', extra_body={"best_of": 4}' if has_reward else ""
    return f"""
Bonsai is up: {url}/v1

with curl:
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]{best_of}}}'

with the openai client:
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  messages = [{{"role": "user", "content": "Hello!"}}]
  answer = client.chat.completions.create(model="{model}", messages=messages{extra_body})
  print(answer.choices[0].message.content)

what it has done so far:
  curl {url}/metrics

Ctrl-C stops everything.
"""
