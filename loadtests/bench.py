"""What a benchmark is: a name, its flags, its figures, and how to run it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.figures import Figure, Row, Run, summarise

RUNS = 3
Setting = int | float | tuple[str, ...]


@dataclass(frozen=True)
class Flag:
    """A setting: a whole number above 0 where its default is one, else a number above 0; or which of its
    default's words to measure."""

    name: str
    default: Setting
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

    @property
    def has_parts(self) -> bool:
        """Whether some of its rows can be measured without the others."""
        return any(isinstance(flag.default, tuple) for flag in self.flags)

    def measure(self, settings: Mapping[str, Setting]) -> list[Figure]:
        """Its figures. LoadTestError when a server does not start or breaks."""
        runs = self.run(**settings)
        rows = [row for row in self.rows if not self.has_parts or row.figure in runs[0].values]
        return summarise(rows, runs, self.command(settings))

    def defaults(self) -> dict[str, Setting]:
        """Every flag's."""
        return {flag.name: flag.default for flag in self.flags}

    def command(self, settings: Mapping[str, Setting]) -> str:
        """The command line that repeats a run."""
        flags = [f"--{flag.name.replace('_', '-')} {_shown(settings[flag.name])}" for flag in self.flags]
        return " ".join(["python -m loadtests", self.name, *flags])


def _shown(value: Setting) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}"
