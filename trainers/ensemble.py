"""Several reward models that differ by their seed alone: its draw of the head, and the order of the data.

Each member is a run of its own in its own folder: the bits that the same command with its seed gives. What
members disagree about is what the data do not settle (Coste et al. 2023); an error that they share, because
they read the same data, stays. A continued ensemble leaves alone the members that are finished.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from trainers import checkpoint, formats
from trainers.config import TrainingConfig
from trainers.errors import ConfigError
from trainers.run import FREE_ON_RESUME

PREFIX = "member-"
DATA = ("dataset_name", "eval_dataset_name", "normalization_dataset")
"""The settings that name data, in the order in which alignment.json lists them."""

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def member_folder(output_dir: str, number: int) -> str:
    """Where a member goes; the first is number 1."""
    return str(Path(output_dir) / f"{PREFIX}{number}")


def train_members(output_dir: str, members: Sequence[ConfigT], train: Callable[[ConfigT], None]) -> None:
    """Trains each member that is not finished, then says how to serve all of them as one."""
    _refuse_others(Path(output_dir), len(members))
    for number, member in enumerate(members, 1):
        if member.resume_from_checkpoint is not None and is_finished(member):
            _say(f"member {number} of {len(members)} is finished")
            continue
        _say(f"member {number} of {len(members)}, seed {member.seed}")
        train(member)
    _say(f"serve them as one: python -m rm_server --model {'+'.join(m.output_dir for m in members)}")


def is_finished(config: TrainingConfig) -> bool:
    """Whether the output folder holds, whole, what these settings, checkpoint and data would make."""
    folder = Path(config.output_dir)
    if not (folder / checkpoint.MANIFEST).is_file():
        return False
    checkpoint.verify(folder)
    made = checkpoint.read_json(folder / checkpoint.ALIGNMENT)
    parent = checkpoint.find(config.model_name_or_path)
    names = [name for name in (asdict(config).get(field) for field in DATA) if name]
    data = [source.sha256 for name in names for source in formats.read_rows(name)[1]]
    return (
        _learned(made["config"]) == _learned(asdict(config))
        and made["parent"]["sha256"] == parent.sha256
        and [source["sha256"] for source in made["data"]] == data
    )


def _learned(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}


def _refuse_others(folder: Path, num_members: int) -> None:
    """Refuses a folder with what would be taken for a part of this ensemble, or for all of it."""
    numbers = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*") if path.is_dir()]
    more = sorted(int(number) for number in numbers if number.isdecimal() and int(number) > num_members)
    if more:
        raise ConfigError(
            f"--output_dir {folder}: holds {PREFIX}{more[0]} of a larger ensemble; remove it, or choose "
            "another folder"
        )
    if (folder / checkpoint.MANIFEST).is_file():
        raise ConfigError(f"--output_dir {folder}: holds a single model; choose another folder")


def _say(text: str) -> None:
    print(f"reward: {text}", file=sys.stderr, flush=True)
