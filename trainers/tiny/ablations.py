"""What PPO's entropy bonus, adaptive KL coefficient and PTX mix are for, seen on the small world.

    python -m trainers.tiny.ablations [--demo runs/demo] [--folder runs/ablations]

Trains the SFT model of a finished demo by PPO: as it is, and with one thing changed at a time. Then it draws
the entropy of the answers, their KL to the SFT model, and what each policy has lost of the demonstrations,
and writes a table of the same. Stopped at any moment, the same command goes on from there.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from trainers.__main__ import main as train
from trainers.errors import TrainerError
from trainers.folder import METRICS
from trainers.intervals import Mean, paired_gain
from trainers.plots import read_metrics

LAST = 10
"""Steps at the end of a run whose mean is its figure."""
KL_TARGETS = (1.0, 3.0)
PLAIN = "plain"
PTX = "ptx 1"
CHANGES: Mapping[str, Sequence[object]] = {
    PLAIN: (),
    "entropy 0.05": ("--entropy_coef", 0.05),
    "entropy 0.15": ("--entropy_coef", 0.15),
    **{
        f"kl target {target:g}": ("--kl_target_nats_per_sequence", target, "--kl_coef", 0.2)
        for target in KL_TARGETS
    },
    PTX: ("--ptx_coef", 1),
}
"""The runs, and what each changes."""
PANELS = {
    "entropy (nats per token)": ("entropy_nats_per_token", [PLAIN, "entropy 0.05", "entropy 0.15"]),
    "KL to SFT (nats per answer)": (
        "kl_nats_per_sequence",
        [PLAIN, *(name for name in CHANGES if name.startswith("kl"))],
    ),
}
"""The curves: a metric, and the runs that are compared by it."""
Lines = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Trains by PPO with one thing changed at a time, and draws what it did."""

    demo: Path = Path("runs/demo")
    """A finished demo: its SFT and reward model are started from, its prompts and demonstrations used."""
    folder: Path = Path("runs/ablations")
    """Where the runs are kept, and ablations.png and ablations.md written."""
    max_steps: int = 40
    """Steps of each run."""
    batch_size: int = 32
    """Half the episodes of a step."""
    response_length: int = 80
    """Longest answer in tokens."""
    seed: int = 0
    """Seed of all runs."""


def flags(config: Config, name: str) -> list[str]:
    """The command line of a run."""
    data = config.demo / "data"
    shared = (
        *("--model_name_or_path", config.demo / "sft", "--reward_model_path", config.demo / "reward"),
        *("--dataset_name", data / "train_prompts.jsonl", "--output_dir", config.folder / name),
        *("--eval_dataset_name", data / "held_out_prompts.jsonl", "--max_steps", config.max_steps),
        *("--per_device_train_batch_size", config.batch_size, "--gradient_accumulation_steps", 2),
        *("--response_length", config.response_length, "--num_ppo_epochs", 2, "--num_mini_batches", 2),
        *("--learning_rate", 1e-4, "--value_learning_rate", 3e-4, "--lr_scheduler_type", "constant"),
        # Adapts at each step, by at most a fifth.
        *("--kl_horizon_episodes", 2 * config.batch_size, "--local_rollout_forward_batch_size", 128),
        *("--max_length", 256, "--bf16", "--seed", config.seed, "--save_steps", 5, "--save_total_limit", 1),
        "--resume_from_checkpoint",
    )
    mixed = ("--ptx_dataset_name", data / "sft_train.jsonl") if name == PTX else ()
    return ["ppo", *map(str, (*shared, *CHANGES[name], *mixed))]


def demonstration_losses(checkpoint_folder: Path, demonstrations: Path) -> list[float]:
    """The mean negative log-likelihood of each demonstration's learned tokens, in nats per token."""
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    import torch

    from trainers import checkpoint, encoding, formats, models
    from trainers.chat import ChatEncoder
    from trainers.data import collate_tokens
    from trainers.logprobs import sequence_logps, token_logprobs

    parent = checkpoint.find(str(checkpoint_folder))
    tokenizer, _ = models.load_tokenizer(parent, None)
    policy = models.load_policy(parent, tokenizer, "sdpa")
    rows, _ = formats.read_demonstrations(str(demonstrations))
    examples = encoding.tokenize_demonstrations(rows, ChatEncoder(tokenizer))
    losses: list[float] = []
    with torch.no_grad():
        for at in range(0, len(examples), 64):
            batch = collate_tokens(examples[at : at + 64], tokenizer.pad_token_id)
            sums_B = sequence_logps(token_logprobs(policy, batch).double(), batch)
            losses += (-sums_B / batch.rows_N.bincount()).tolist()
    return losses


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    lines: Lines
    """Its metrics, step by step."""
    loss_gain: Mean
    """How much more nats per token the held-out demonstrations cost it than the SFT model, paired by
    demonstration."""

    def late(self, metric: str) -> float:
        """The mean of a metric over the last steps."""
        return fmean(line[metric] for line in self.lines[-LAST:])


def markdown(outcomes: Mapping[str, Outcome]) -> str:
    """The table: means over the last steps, the reward of held-out prompts, and what was forgotten."""
    head = [
        f"Means over the last {LAST} steps; reward of one answer to each held-out prompt; loss on held-out "
        "demonstrations, in nats per token more than the SFT model's [95 % interval]:",
        "",
        "| run | entropy, nats per token | KL, nats per answer | last `kl_coef` | held-out reward | loss |",
        "|---" * 6 + "|",
    ]
    rows = [
        f"| {name} | {outcome.late('entropy_nats_per_token'):.2f} "
        f"| {outcome.late('kl_nats_per_sequence'):.2f} | {outcome.lines[-1]['kl_coef']:.3f} "
        f"| {outcome.lines[-1]['eval_reward']:.2f} | {_show(outcome.loss_gain)} |"
        for name, outcome in outcomes.items()
    ]
    return "\n".join([*head, *rows, ""])


def _show(value: Mean) -> str:
    return f"{value.mean:+.3f} [{value.ci95[0]:+.3f}, {value.ci95[1]:+.3f}]"


def plot(outcomes: Mapping[str, Outcome], image: Path) -> None:
    """Draws the three panels."""
    # matplotlib takes a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    *curves, forgotten = figure.subplots(1, len(PANELS) + 1)
    for axes, (label, (metric, names)) in zip(curves, PANELS.items(), strict=True):
        for name in names:
            lines = outcomes[name].lines
            axes.plot([line["step"] for line in lines], [line[metric] for line in lines], label=name)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    for number, target in enumerate(KL_TARGETS, 1):
        curves[1].axhline(target, color=f"C{number}", linestyle=":")
    _plot_losses(forgotten, outcomes)
    figure.savefig(image, dpi=90)


def _plot_losses(axes: Any, outcomes: Mapping[str, Outcome]) -> None:
    gains = [outcome.loss_gain for outcome in outcomes.values()]
    errors = [[gain.mean - gain.ci95[0] for gain in gains], [gain.ci95[1] - gain.mean for gain in gains]]
    places = range(len(gains))
    axes.errorbar([gain.mean for gain in gains], places, xerr=errors, fmt="o", capsize=3)
    axes.set_yticks(places, list(outcomes))
    axes.invert_yaxis()
    axes.axvline(0, color="grey")
    axes.set(xlabel="loss on held-out demonstrations, over SFT's\n(nats per token, 95 % interval)")
    axes.grid(alpha=0.3)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, measures, draws; returns the exit code."""
    config = tyro.cli(Config, prog="python -m trainers.tiny.ablations", description=__doc__, args=argv)
    try:
        for name in CHANGES:
            print(f"{name}:", file=sys.stderr)
            exit_code = train(flags(config, name))
            if exit_code:
                return exit_code
        outcomes = _measure(config)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    table = markdown(outcomes)
    print(table)
    (config.folder / "ablations.md").write_text(table, encoding="utf-8")
    plot(outcomes, config.folder / "ablations.png")
    return 0


def _measure(config: Config) -> dict[str, Outcome]:
    demonstrations = config.demo / "data" / "sft_validation.jsonl"
    before = demonstration_losses(config.demo / "sft", demonstrations)
    return {
        name: Outcome(
            read_metrics(config.folder / name / METRICS),
            paired_gain(demonstration_losses(config.folder / name, demonstrations), before),
        )
        for name in CHANGES
    }


if __name__ == "__main__":
    sys.exit(main())
