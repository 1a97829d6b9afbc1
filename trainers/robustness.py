"""The two-halves test of a reward model (Bai et al. 2022, section 4.2): does what one half taught hold for
the other?

The preferences are cut in two by prompt. One model learns from each half, the train model and the test
model, both normalised over the first file of --samples, which the reference policy wrote. Whatever is then
optimised against the train model, the test model judges: where its score stops following, the optimisation
has begun to use what only the train model believes. Optimised are

    best-of-n     of the answers in --samples, chosen by the train model, for n up to all of a prompt's; each
                  point is the mean over every choice of n answers (Nakano et al. 2021, appendix I)
    policies      whose answers are in the further files of --samples, trained against OUTPUT/train

robustness.json holds both curves with 95 % intervals over prompts, the models' accuracies on seen and unseen
preferences and the correlation of their scores; robustness.png shows best-of-n.

    python -m trainers robustness --model_name_or_path runs/sft --dataset_name pairs.jsonl --samples
    runs/samples.jsonl --output_dir runs/robustness
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import reward
from trainers.config import LATEST, parse
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.halves import Judge

HALVES = ("train", "test")
REPORT, PLOT = "robustness.json", "robustness.png"


@dataclass(frozen=True, kw_only=True)
class Config(reward.Config):
    """Settings of the two-halves test: those of both models, and the answers to judge."""

    samples: tuple[str, ...]
    """Files that `sample` wrote: of the reference policy, then of any policies trained against OUTPUT/train.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = {"eval_dataset_name": None, "normalization_dataset": None, "num_members": 1}
        for name, default in taken.items():
            if getattr(self, name) != default:
                raise ConfigError(f"--{name} has no place here: the other half and --samples are taken")
        if self.save_adapter:
            raise ConfigError("--save_adapter has no place here: both models are asked, merged")
        if self.resume_from_checkpoint not in (None, LATEST):
            raise ConfigError("--resume_from_checkpoint takes no path here: there are two models")
        if not self.samples:
            raise ConfigError("--samples must name at least one file")


def main(argv: Sequence[str]) -> int:
    """Tests by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "robustness", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import checkpoint, ensemble, folder, halves, plots
    from trainers.launcher import open_devices
    from trainers.run import Run

    output = Path(config.output_dir)
    with folder.lock(output):
        run = Run(config, "robustness", output, None, open_devices(config))
        samples = {name: halves.read_answers(name) for name in config.samples}
        files = halves.split(config.dataset_name, output, HALVES, config.seed)
        for name, file in zip(HALVES, files, strict=True):
            half = half_config(config, name, file)
            if half.resume_from_checkpoint is None or not ensemble.is_finished(half):
                reward.train_reward_model(half)
        train, test = (halves.Judge(run, output / name) for name in HALVES)
        scores = {name: (train.score(answers), test.score(answers)) for name, answers in samples.items()}
        reference = scores[config.samples[0]]
        report: dict[str, Any] = {
            "accuracy": {
                "train": _seen_and_unseen(train, files, config),
                "test": _seen_and_unseen(test, files[::-1], config),
            },
            "correlation": halves.agreement(*reference),
            "best_of_n": halves.best_of_n_curve(*reference),
            "policies": [{"samples": name} | halves.policy_point(*both) for name, both in scores.items()],
        }
        checkpoint.write_json(output / REPORT, report)
        plots.plot_halves(report["best_of_n"], output / PLOT)
        run.say(describe(report))
    return 0


def half_config(config: Config, name: str, file: Path) -> reward.Config:
    """The settings of one half's reward model."""
    settings = {field.name: getattr(config, field.name) for field in fields(reward.Config)}
    own = {
        "output_dir": str(Path(config.output_dir) / name),
        "dataset_name": str(file),
        "normalization_dataset": config.samples[0],
    }
    return reward.Config(**(settings | own))


def describe(report: dict[str, Any]) -> str:
    """One line for the user."""
    first, last = report["best_of_n"][0], report["best_of_n"][-1]
    rise = {name: last[name]["mean"] - first[name]["mean"] for name in HALVES}
    low, high = last["gap"]["ci95"]
    return (
        f"best of {last['n']}: the train model's score rises by {rise['train']:.2f} standard deviations, the "
        f"test model's by {rise['test']:.2f}; gap {last['gap']['mean']:.2f} [{low:.2f}, {high:.2f}]; their "
        f"scores correlate by {report['correlation']:.2f}"
    )


def _seen_and_unseen(judge: "Judge", files: Sequence[Path], config: Config) -> dict[str, float]:
    draw = (config.loss_type, config.normalization_samples, config.seed)
    return {name: judge.accuracy(file, *draw) for name, file in zip(("seen", "unseen"), files, strict=True)}
