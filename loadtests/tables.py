"""Tables of a report, for any form of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console
from rich.markup import escape


@dataclass(frozen=True)
class Table:
    """A title, a head, rows of texts."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def without_empty_columns(self) -> "Table":
        """Only the columns that say something, and the first."""
        kept = [k for k in range(len(self.head)) if k == 0 or any(row[k] for row in self.rows)]
        return Table(self.title, [self.head[k] for k in kept], [[row[k] for k in kept] for row in self.rows])

    def markdown(self) -> str:
        """As GitHub reads it."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        return "\n".join([f"## {self.title}", "", *(f"| {line} |" for line in cells)])

    def show(self) -> None:
        """On the terminal."""
        shown = rich.table.Table(title=self.title, title_justify="left")
        for index, name in enumerate(self.head):
            shown.add_column(escape(name), justify="left" if index == 0 else "right")
        for row in self.rows:
            shown.add_row(*map(escape, row))
        Console().print(shown)


def number(value: float, unit: str = "") -> str:
    """As people read it: four digits that count; nothing for what was not measured."""
    if math.isnan(value):
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2%}" if unit == "share" else f"{shown} {unit}".rstrip()


def with_interval(value: float, half_width: float) -> str:
    """A mean and half of its 95 % interval."""
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if math.isnan(half_width) else f"{value:.3f} ± {half_width:.3f}"
