"""What a benchmark is: a name, its flags, its figures, and how to run it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.figures import Figure, Row, Run, summarise

RUNS = 3


@dataclass(frozen=True)
class Flag:
    """A setting: a whole number above 0 where its default is one, else a number above 0."""

    name: str
    default: int | float
    help: str


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One benchmark. It starts and ends all that it needs."""

    name: str
    help: str
    flags: Sequence[Flag]
    rows: Sequence[Row]
    run: Callable[..., list[Run]]
    """Takes the flags by name."""
    takes_s: float
    """With its defaults, about."""

    def measure(self, settings: Mapping[str, int | float]) -> list[Figure]:
        """Its figures. LoadTestError when a server does not start or breaks."""
        return summarise(self.rows, self.run(**settings), self.command(settings))

    def defaults(self) -> dict[str, int | float]:
        """Every flag's."""
        return {flag.name: flag.default for flag in self.flags}

    def command(self, settings: Mapping[str, int | float]) -> str:
        """The command line that repeats a run."""
        flags = [f"--{flag.name.replace('_', '-')} {settings[flag.name]:g}" for flag in self.flags]
        return " ".join(["python -m loadtests", self.name, *flags])
