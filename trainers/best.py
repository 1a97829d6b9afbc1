"""Which evaluation of a run was the best, and when to stop looking for a better one.

InstructGPT (Ouyang et al. 2022, section 3.5 and appendix C.1) trained SFT for 16 epochs and kept the
checkpoint with the highest reward-model score: validation loss overfits after one epoch, and yet more epochs
help both that score and what people prefer.

What is known so far is part of the `Place` in every checkpoint. Each evaluation that is the best so far has
its step saved as checkpoint-N, which stays for as long as a newer checkpoint names it; so a run that is
killed and continued chooses as one that was not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainers import checkpoint
from trainers.config import RunConfig, TrainingConfig
from trainers.errors import CheckpointError
from trainers.resume import PREFIX, Place


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of a run's evaluations by one metric; of equal ones the first."""

    metric: str
    """As evaluations name it: eval_loss, eval_reward, ..."""
    patience: int | None
    """Evaluations in a row that may fail to be the best; None: any number."""

    def take(self, place: Place, metrics: Mapping[str, float]) -> None:
        """Takes in the evaluation of the step that `place` is at."""
        if self._is_better(metrics[self.metric], place):
            place.best_step, place.evaluations_since_best = place.step, 0
            place.best_metrics = {name: value for name, value in metrics.items() if name.startswith("eval_")}
        else:
            place.evaluations_since_best += 1

    def is_over(self, place: Place) -> bool:
        """Whether the run shall stop."""
        return self.patience is not None and place.evaluations_since_best >= self.patience

    def summary(self, place: Place) -> dict[str, float]:
        """What alignment.json says of the weights that were chosen, and how far the run went."""
        return {"step": place.best_step, "last_step": place.step} | place.best_metrics

    def _is_better(self, value: float, place: Place) -> bool:
        if not math.isfinite(value) or place.best_step == 0:
            return math.isfinite(value)
        best = place.best_metrics[self.metric]
        return value < best if self.metric == "eval_loss" else value > best


def choice_of(config: RunConfig) -> Choice | None:
    """The choice that the settings ask for, if any."""
    if not isinstance(config, TrainingConfig) or not config.load_best_model_at_end:
        return None
    return Choice(f"eval_{config.best_metric}", config.early_stopping_patience)


def best_checkpoint(output: Path, resumed: Path | None, place: Place) -> Path:
    """Where the best weights so far are: in the output folder, or beside the checkpoint that was continued.

    Raises CheckpointError where they are gone.
    """
    name = f"{PREFIX}{place.best_step}"
    for folder in [output, *([resumed.parent] if resumed else [])]:
        if (folder / name).is_dir() and checkpoint.verify(folder / name):
            return folder / name
    raise CheckpointError(f"{output / name}: gone, and it was the best checkpoint of the run so far")
