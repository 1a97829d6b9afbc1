"""Figures, as a table for people and as runs/bench/NAME.json for programs; made of several runs."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value. `met` is None where there is no target; a `noisy` figure says little."""

    figure: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None
    noisy: bool = False
    command: str


@dataclass(frozen=True)
class Row:
    """A figure that every run of a benchmark measures: the median of the runs counts, or the `worst`, where
    one bad run is one too many."""

    figure: str
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    worst: bool = False

    @property
    def target(self) -> str | None:
        """As the tables show it."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return None if self.at_most is None else f"<= {self.at_most:g}"

    def over(self, values: Sequence[float]) -> float:
        """What the runs come to; nan where a run has no value."""
        if any(math.isnan(value) for value in values):
            return math.nan
        if self.worst:
            return min(values) if self.at_least is not None else max(values)
        return statistics.median(values)

    def met(self, value: float) -> bool | None:
        """Whether a value reaches the target; what is not measured does not."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


@dataclass(frozen=True)
class Run:
    """One run: values by the name of their row, and the signs that it was disturbed."""

    values: Mapping[str, float]
    signs: Sequence[str] = field(default_factory=list)


def repeat(runs: int, once: Callable[[], Run]) -> list[Run]:
    """Run several times; say what disturbed each."""
    found = []
    for number in range(1, runs + 1):
        found.append(once())
        for sign in found[-1].signs:
            print(f"run {number} of {runs} is noisy: {sign}", flush=True)
    return found


def summarise(rows: Sequence[Row], runs: Sequence[Run], command: str) -> list[Figure]:
    """The figures of a benchmark: noisy where any of its runs was."""
    noisy = any(run.signs for run in runs)
    figures = []
    for row in rows:
        value = row.over([run.values[row.figure] for run in runs])
        figures.append(
            Figure(
                figure=row.figure,
                value=value,
                unit=row.unit,
                target=row.target,
                met=row.met(value),
                noisy=noisy,
                command=command,
            )
        )
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan of no values."""
    if not values:
        return math.nan
    rank = math.ceil(share * len(values))
    return sorted(values)[max(rank, 1) - 1]


def show(title: str, figures: Sequence[Figure]) -> None:
    """The table."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "unit", "target", "met", "noisy"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for figure in figures:
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        noisy = "noisy" if figure.noisy else ""
        value = f"{figure.value:,.0f}" if abs(figure.value) >= 1000 else f"{figure.value:.4g}"
        table.add_row(figure.figure, value, figure.unit, figure.target or "", met, noisy)
    Console().print(table)


def with_earlier(folder: Path, name: str, figures: Sequence[Figure]) -> list[Figure]:
    """The figures, and before them those of NAME.json that were not measured again."""
    path = folder / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    new = {figure.figure for figure in figures}
    earlier = [
        Figure(**row | {"value": math.nan if row["value"] is None else row["value"]})
        for row in rows
        if row["figure"] not in new
    ]
    return [*earlier, *figures]


def save(folder: Path, name: str, figures: Sequence[Figure]) -> Path:
    """Write NAME.json, whole or not at all; a value that is no number becomes null."""
    rows = [asdict(figure) for figure in figures]
    for row in rows:
        row["value"] = row["value"] if math.isfinite(row["value"]) else None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(rows, indent=1) + "\n")
    unfinished.replace(path)
    return path
