"""The loss plot of a run, from its metrics.jsonl."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def plot_loss(metrics_file: Path, image: Path, title: str) -> None:
    """Draws training (and evaluation) loss over steps; without matplotlib or values, nothing."""
    try:
        # matplotlib takes a second to import, and a run can do without.
        from matplotlib.figure import Figure
    except ImportError:
        return
    lines = read_metrics(metrics_file)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("eval_loss", "held-out")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None)
    if not axes.lines:
        return
    axes.set(title=title, xlabel="optimizer step", ylabel="loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=120)
