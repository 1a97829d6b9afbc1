"""Settings of runs that may train a LoRA adapter instead of all weights.

Like config.py this imports neither torch nor transformers.
"""

from dataclasses import dataclass, fields

from trainers.config import TrainingConfig
from trainers.errors import ConfigError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(TrainingConfig):
    """Whether an adapter is trained, where in the model it sits, and what becomes of it."""

    use_peft: bool = False
    """Train a LoRA adapter, and leave the weights as they are (Hu et al. 2021). It wants about ten times the
    learning rate."""
    lora_r: int = 16
    """LoRA: rank of the change to each matrix (more than 16 must be said to vLLM too)."""
    lora_alpha: int = 32
    """LoRA: the change is scaled by alpha / rank."""
    lora_target_modules: list[str] | None = None
    """LoRA: which layers are changed, by their names or what those end in (q_proj v_proj ...); `all-linear`,
    the default, stands for every linear layer but the head."""
    save_adapter: bool = False
    """LoRA: end with the adapter alone, in PEFT's format, instead of the model with the adapter merged in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("lora_r", "lora_alpha"), lambda value: value >= 1, "at least 1")
        targets = self.lora_target_modules
        if targets is not None and (not targets or (ALL_LINEAR in targets and len(targets) > 1)):
            raise ConfigError(f"--lora_target_modules takes {ALL_LINEAR}, or at least one name")
        for field in fields(AdapterConfig):
            is_idle = field.name.startswith(("lora_", "save_adapter")) and not self.use_peft
            if is_idle and getattr(self, field.name) != field.default:
                raise ConfigError(f"--{field.name} goes with --use_peft")
