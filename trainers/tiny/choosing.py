"""What best-of-N is worth in the small world, for every N up to a number, from one pool of answers.

    python -m trainers.tiny.choosing --folder runs/demo --policy sft

Samples answers of the demo's policy to its held-out prompts, has the demo's reward model choose, and asks the
gold reward, which no real system can read, what the choice is worth. Each point is the mean over every choice
of N of a prompt's answers (Nakano et al. 2021, appendix I), so that one pool gives the whole curve. Writes
curve.json, curve.md and curve.png; where the demo has measured through the gateway, its points are drawn too.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from trainers import halves
from trainers.config import RunConfig
from trainers.launcher import open_devices
from trainers.run import Run
from trainers.tiny import results
from trainers.tiny.gold import gold_reward
from trainers.tiny.recipe import read_jsonl
from trainers.tiny.results import Cell

MAX_TOKENS = 80
"""As the demo asks for."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the curve."""

    folder: Path = Path("runs/demo")
    """Of a finished demo."""
    policy: Literal["sft", "dpo", "ppo"] = "sft"
    """Whose answers are chosen from."""
    num_samples: int = 16
    """Answers to each prompt: the largest N."""
    output: Path = Path("runs/choosing")
    """A folder; answers that are there already are not sampled again."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples; auto is vLLM where it is installed."""
    seed: int = 0
    """Of sampling."""


class SampleError(Exception):
    """Sampling failed; it has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("sampling failed")
        self.exit_code = exit_code


def sample(config: Config) -> Path:
    """The file of answers. Raises SampleError."""
    path = config.output / f"{config.policy}-{config.num_samples}-{config.seed}.jsonl"
    if not path.exists():
        flags = {
            "model_name_or_path": config.folder / config.policy,
            "prompts": config.folder / "data/held_out_prompts.jsonl",
            "output": path,
            "num_samples": config.num_samples,
            "max_new_tokens": MAX_TOKENS,
            "engine": config.engine,
            "seed": config.seed,
        }
        words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        done = subprocess.run([sys.executable, "-m", "trainers", "sample", *words], check=False)
        if done.returncode:
            raise SampleError(done.returncode)
    return path


def curve(path: Path, reward_model: Path, workspace: Path) -> list[dict[str, Any]]:
    """For N = 1, 2, 4, ...: the KL bound, and what the chosen answer is worth to the reward model and by the
    gold reward, with 95 % intervals over prompts; and tokens sampled for an answer, on average.
    """
    settings = RunConfig(output_dir=str(workspace))
    judge = halves.Judge(Run(settings, "choosing", workspace, None, open_devices(settings)), reward_model)
    rows = list(read_jsonl(path))
    gold = [
        [gold_reward(row["skill"], row["facts"], text.strip()) for text in row["responses"]] for row in rows
    ]
    texts = [text for row in rows for text in row["responses"]]
    tokens = sum(len(judge.tokenizer.encode(text)) for text in texts) / len(texts)
    points = halves.best_of_n_curve(judge.score(halves.read_answers(str(path))), gold)
    return [
        {
            "n": point["n"],
            "kl_bound_nats": point["kl_bound_nats"],
            "reward": point["train"],
            "gold": point["test"],
            "tokens_sampled": point["n"] * tokens,
        }
        for point in points
    ]


def markdown(points: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    head = (
        "| N | gold reward | reward model's | KL bound, nats | tokens sampled |\n|---:|---:|---:|---:|---:|\n"
    )
    rows = [
        f"| {p['n']} | {_shown(p['gold'])} | {_shown(p['reward'])} "
        f"| {p['kl_bound_nats']:.2f} | {p['tokens_sampled']:.0f} |\n"
        for p in points
    ]
    return head + "".join(rows)


def _shown(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:+.2f} ± {value['ci95'][1] - value['mean']:.2f}"


def gateway_points(file: Path, policy: str) -> dict[int, float]:
    """Gold rewards that the demo has measured through the gateway, by best_of; none where it has not."""
    try:
        found: Mapping[Cell, Any] = results.load(file).gold
    except (OSError, ValueError, KeyError):
        return {}
    return {best_of: value.mean for (name, best_of), value in found.items() if name == policy}


def plot(points: Sequence[Mapping[str, Any]], served: Mapping[int, float], image: Path, title: str) -> None:
    """Both rewards over N; the KL bound stands above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ns = [point["n"] for point in points]
    for name, label in (("reward", "reward model's (what it chooses by)"), ("gold", "gold (what is meant)")):
        low, high = ([point[name]["ci95"][end] for point in points] for end in (0, 1))
        axes.plot(ns, [point[name]["mean"] for point in points], marker="o", label=label)
        axes.fill_between(ns, low, high, alpha=0.2)
    if served:
        axes.plot(list(served), list(served.values()), "kx", label="gold, through the gateway")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [f"{n}\n{p['kl_bound_nats']:.2f} nats" for n, p in zip(ns, points, strict=True)])
    axes.set(xlabel="N, and the KL bound log N - (N-1)/N", ylabel="mean, 95 % interval", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    config = tyro.cli(Config, prog="python -m trainers.tiny.choosing", description=__doc__, args=argv)
    needed = [config.folder / name for name in (config.policy, "reward", "data/held_out_prompts.jsonl")]
    missing = [str(path) for path in needed if not path.exists()]
    if missing or config.num_samples < 2:
        why = (
            f"{missing[0]} is not there; `make demo` makes it"
            if missing
            else "--num-samples must be 2 or more"
        )
        print(f"error: {why}", file=sys.stderr)
        return 2
    config.output.mkdir(parents=True, exist_ok=True)
    try:
        answers = sample(config)
    except SampleError as error:
        return error.exit_code
    points = curve(answers, config.folder / "reward", config.output)
    (config.output / "curve.json").write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    (config.output / "curve.md").write_text(markdown(points), encoding="utf-8")
    served = gateway_points(config.folder / "results.json", config.policy)
    plot(points, served, config.output / "curve.png", f"best of N of {config.policy}")
    print(markdown(points), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
