"""Figures, as a table for people and as runs/bench/NAME.json for programs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
        table.add_row(figure.figure, f"{figure.value:.4g}", figure.unit, figure.target or "", met, noisy)
    Console().print(table)


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
