"""The plots of a run, from its metrics.jsonl: the loss, and the curves of rewards and what goes with them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, of which there may be none; a last line that a crash cut short is left
    out.
    """
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


CURVES = {
    "reward": ("reward", "objective"),
    "KL to the reference (nats per sequence)": ("kl_nats_per_sequence",),
    "KL coefficient": ("kl_coef",),
    "entropy (nats per token)": ("entropy_nats_per_token",),
    "response length (tokens)": ("response_length",),
    "share": ("eos_share", "clip_fraction", "value_clip_fraction", "explained_variance"),
    "loss": ("loss", "policy_loss", "value_loss", "ptx_loss"),
}
"""Panels of the plot of a run with rewards: their axis, and the metrics in them."""


def plot_loss(metrics_file: Path, image: Path, title: str) -> None:
    """Draws training (and evaluation) loss over steps; without matplotlib or values, nothing."""
    _plot(metrics_file, image, title, {"loss (nats)": ("loss",)})


def plot_curves(metrics_file: Path, image: Path, title: str) -> None:
    """Draws reward, KL, entropy, lengths and losses over steps; nothing where there are no rewards."""
    if any("reward" in line or "eval_reward" in line for line in read_metrics(metrics_file)):
        _plot(metrics_file, image, title, CURVES)


def _plot(metrics_file: Path, image: Path, title: str, panels: Mapping[str, Sequence[str]]) -> None:
    try:
        # matplotlib takes a second to import, and a run can do without.
        from matplotlib.figure import Figure
    except ImportError:
        return
    lines = read_metrics(metrics_file)
    drawn = {label: curves for label, names in panels.items() if (curves := _curves(lines, names))}
    if not drawn:
        return
    figure = Figure(figsize=(7, 4 if len(drawn) == 1 else 2.6 * len(drawn)), layout="constrained")
    figure.suptitle(title)
    for axes, (label, curves) in zip(
        figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True
    ):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 20 else None)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(image, dpi=120)


def _curves(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The points of each metric that there is, in training and held out."""
    both = {name: label for of in names for name, label in ((of, of), (f"eval_{of}", f"{of}, held-out"))}
    found = {
        label: [(line["step"], line[name]) for line in lines if name in line] for name, label in both.items()
    }
    return {label: points for label, points in found.items() if points}


def plot_halves(points: Sequence[dict[str, Any]], image: Path) -> None:
    """Draws the train and the test model's score of best-of-n over the square root of its KL bound."""
    try:
        # matplotlib takes a second to import, and a run can do without.
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    roots = [point["kl_bound_nats"] ** 0.5 for point in points]
    for name in ("train", "test"):
        low, high = ([point[name]["ci95"][end] for point in points] for end in (0, 1))
        axes.plot(roots, [point[name]["mean"] for point in points], marker="o", label=f"{name} model")
        axes.fill_between(roots, low, high, alpha=0.2)
    for root, point in zip(roots, points, strict=True):
        axes.annotate(
            f"n={point['n']}", (root, point["train"]["mean"]), xytext=(4, -12), textcoords="offset points"
        )
    axes.set(title="best of n by the train model", xlabel="sqrt(log n - (n - 1) / n), nats", ylabel="reward")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=120)
