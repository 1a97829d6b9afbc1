"""The settings that every algorithm shares, and how flags become them.

A flag carries TRL's name where TRL has one, is written with underscores or dashes, and a switch is `--bf16`
or `--bf16 true`. Each algorithm extends `TrainingConfig` (or `RunConfig`, where it starts from nothing) with
its own fields. Settings are checked when they are made: a wrong one is exit code 2, before anything is
loaded.

This module imports neither torch nor transformers, so that `--help` answers at once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import tyro

from trainers.errors import ConfigError

LATEST = "latest"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What any run needs: where it writes, how it steps, what it keeps."""

    output_dir: str
    """Folder for the trained model, its step checkpoints, metrics.jsonl, plots and run.html."""
    overwrite_output_dir: bool = False
    """Remove what an earlier run left in the output folder, instead of refusing to start."""
    resume_from_checkpoint: str | None = None
    """Continue an interrupted run: the path of a checkpoint-N folder, or nothing (`latest`) for the newest
    one in the output folder; where there is none yet, the run starts from the beginning."""
    seed: int = 42
    """Fixes the data order and every random draw."""
    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after warm-up (`constant` keeps it)."""
    warmup_ratio: float = 0.0
    """Share of all steps in which the learning rate rises from 0."""
    warmup_steps: int = 0
    """The same as a number of steps; wins over --warmup_ratio when above 0."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only (not on norms and biases)."""
    adam_beta1: float = 0.9
    """AdamW: decay of the mean of the gradients."""
    adam_beta2: float = 0.999
    """AdamW: decay of the mean of their squares."""
    adam_epsilon: float = 1e-8
    """AdamW: added to the denominator."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    per_device_train_batch_size: int = 8
    """Examples (pairs, for preference methods) in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step; the mean is taken over all their tokens (or pairs) at once."""
    num_train_epochs: float = 1.0
    """Passes over the data; parts of one are allowed."""
    max_steps: int = -1
    """Optimizer steps; above 0 it wins over --num_train_epochs."""
    logging_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_steps: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    save_steps: int = 500
    """Steps between checkpoint-N folders; 0 saves the final model only."""
    save_total_limit: int = 2
    """How many checkpoint-N folders to keep."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Beside metrics.jsonl: TensorBoard's events, in the output folder's `tensorboard`."""
    bf16: bool = False
    """Compute in bfloat16; the weights stay float32. Up to twice as fast where the processor has bfloat16."""
    use_cpu: bool = False
    """Stay on the CPU where a GPU is present."""

    def __post_init__(self) -> None:
        at_least_one = ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        self._check(at_least_one, lambda value: value >= 1, "at least 1")
        above_zero = ("learning_rate", "num_train_epochs", "adam_epsilon")
        self._check(above_zero, lambda value: 0 < value < float("inf"), "above 0")
        from_zero = ("seed", "eval_steps", "save_steps", "warmup_steps", "weight_decay", "max_grad_norm")
        self._check(from_zero, lambda value: 0 <= value < float("inf"), "0 or above")
        self._check(("warmup_ratio", "adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "in [0, 1)")
        self._check(("save_total_limit",), lambda value: value >= 1, "at least 1")
        self._check(("max_steps",), lambda value: value == -1 or value >= 1, "at least 1, or -1 for none")
        if not self.output_dir:
            raise ConfigError("--output_dir must name a folder")

    def _check(self, names: Sequence[str], allowed: Callable[[float], bool], rule: str) -> None:
        """Raises ConfigError where one of the named fields breaks the rule."""
        for name in names:
            if not allowed(getattr(self, name)):
                raise ConfigError(f"--{name} must be {rule}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """A run that starts from a checkpoint and reads a data set."""

    model_name_or_path: str
    """The checkpoint to start from: a local folder or a Hugging Face hub name."""
    dataset_name: str
    """The data: a .jsonl or .json file (.gz too), a folder of them, or a hub name (with `datasets`)."""
    eval_dataset_name: str | None = None
    """Held-out data in the same format, reported as eval_* metrics."""
    max_length: int = 1024
    """Longest sequence in tokens; longer rows are dropped and counted, not cut."""
    chat_template_path: str | None = None
    """A Jinja file with a chat template for a tokenizer that has none, or `simple` for the built-in one."""
    attn_implementation: Literal["auto", "eager", "sdpa"] = "auto"
    """How attention is computed; auto takes what is fastest for the device and the data's lengths."""
    load_best_model_at_end: bool = False
    """End with the weights of the best evaluation instead of the last; each better one is saved as its
    checkpoint-N, and kept."""
    metric_for_best_model: str = "loss"
    """What makes an evaluation the best one: the lowest loss, or the highest of anything else."""
    early_stopping_patience: int | None = None
    """With --load_best_model_at_end: stop after so many evaluations in a row that were not the best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("max_length",), lambda value: value >= 2, "at least 2")
        if self.early_stopping_patience is not None:
            self._check(("early_stopping_patience",), lambda value: value >= 1, "at least 1")
        if not self.load_best_model_at_end:
            if self.early_stopping_patience is not None:
                raise ConfigError("--early_stopping_patience goes with --load_best_model_at_end")
        elif self.eval_steps == 0:
            raise ConfigError("--load_best_model_at_end chooses among evaluations: say --eval_steps")
        elif not self.is_evaluated:
            raise ConfigError(
                f"--load_best_model_at_end chooses by {self.best_metric}: {self.evaluation_wants}"
            )

    evaluation_wants: ClassVar[str] = "give --eval_dataset_name"
    """What is missing where evaluations would lack the metric to choose by."""

    @property
    def best_metric(self) -> str:
        """The metric to choose by: `loss`, `reward`, ...; metrics.jsonl has it under `eval_`."""
        return self.metric_for_best_model

    @property
    def is_evaluated(self) -> bool:
        """Whether evaluations will have that metric."""
        return self.eval_dataset_name is not None


ConfigT = TypeVar("ConfigT")


def parse(config_type: type[ConfigT], argv: Sequence[str], name: str, description: str | None) -> ConfigT:
    """Turns flags into a checked Config; prints help or a usage error and exits (0 or 2)."""
    normal = normalize_flags(config_type, argv)
    return tyro.cli(
        config_type,
        prog=f"python -m trainers {name}",
        description=description,
        args=normal,
        config=(tyro.conf.AvoidSubcommands,),
        use_underscores=True,
    )


def normalize_flags(config_type: type, argv: Sequence[str]) -> list[str]:
    """Accepts, as TRL does, `--bf16 true`; and `--resume_from_checkpoint` without a value."""
    switches = {field.name for field in dataclasses.fields(config_type) if field.type in (bool, "bool")}
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") and "=" in word else [word]
    normal: list[str] = []
    position = 0
    while position < len(words):
        word, following = words[position], words[position + 1 : position + 2]
        name = word.removeprefix("--").replace("-", "_")
        position += 1
        if word.startswith("--") and name in switches and following and following[0].lower() in _BOOLEANS:
            normal.append(f"--{name}" if _BOOLEANS[following[0].lower()] else f"--no_{name}")
            position += 1
        elif word.startswith("--") and name == "resume_from_checkpoint":
            has_value = bool(following) and not following[0].startswith("--")
            normal += [word, _checkpoint_name(following[0]) if has_value else LATEST]
            position += has_value
        else:
            normal.append(word)
    return normal


_BOOLEANS = {"true": True, "false": False}


def _checkpoint_name(value: str) -> str:
    return LATEST if value.lower() in ("true", "last", LATEST) else value
