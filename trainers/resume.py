"""Step checkpoints: a servable checkpoint with the state to continue from, all of it in safetensors and JSON
(of a model with an adapter: the adapter alone).

`checkpoint-N` holds, beside the model, training_state.safetensors (optimizer moments, random generators, and
what the algorithm remembers) and training_state.json (the place in the data, and a fingerprint of the work).
On a CPU with the same number of threads a run that is killed and continued ends in the same bits as one that
was not.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from trainers import adapters, checkpoint
from trainers.config import LATEST
from trainers.devices import Devices
from trainers.errors import CheckpointError, ConfigError

STATE = "training_state"
PREFIX = "checkpoint-"


class Memory(Protocol):
    """What an algorithm carries from step to step besides weights, as named tensors."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


@dataclass(slots=True)
class Place:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    """The step of the best evaluation, whose checkpoint is kept; 0 where there is none."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """What that evaluation found."""
    evaluations_since_best: int = 0


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to continue from: the newest in the output folder, or the one named, verified."""
    if wanted == LATEST:
        found = step_checkpoints(output_dir)
        if not found:
            return None
        folder = found[-1]
    else:
        folder = Path(wanted)
    if not checkpoint.verify(folder) or not (folder / f"{STATE}.json").is_file():
        raise CheckpointError(
            f"{folder}: not a checkpoint to continue from: it has no verified training state"
        )
    return folder


def step_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoint-N folders, oldest first."""
    folders = [path for path in output_dir.glob(f"{PREFIX}*") if (path / checkpoint.MANIFEST).is_file()]
    numbered = [path for path in folders if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix(PREFIX)))


def surplus_checkpoints(output_dir: Path, limit: int) -> list[Path]:
    """The checkpoints to let go: all but the newest, and what those name as the best of theirs."""
    folders = step_checkpoints(output_dir)
    newest = folders[-limit:]
    best = {f"{PREFIX}{_place(folder).best_step}" for folder in newest}
    return [folder for folder in folders[:-limit] if folder.name not in best]


def _place(folder: Path) -> Place:
    return Place(**checkpoint.read_json(folder / f"{STATE}.json")["place"])


def state_of(
    optimizer: torch.optim.Optimizer, memory: Memory | None, devices: Devices
) -> dict[str, torch.Tensor]:
    """What there is to continue from besides weights, by name; wanted in all processes at once."""
    tensors = {f"random.{name}": state for name, state in _random_state().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = devices.whole(torch.as_tensor(value))
    if memory is not None:
        tensors |= {f"memory.{name}": value for name, value in memory.state_dict().items()}
    return tensors


def write_state(
    folder: Path, tensors: dict[str, torch.Tensor], place: Place, fingerprint: dict[str, Any]
) -> None:
    """Writes the training state into a checkpoint folder."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{STATE}.safetensors")
    checkpoint.write_json(folder / f"{STATE}.json", {"place": asdict(place), "fingerprint": fingerprint})


def read_state(
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    fingerprint: dict[str, Any],
    memory: Memory | None,
    devices: Devices,
) -> Place:
    """Puts model, optimizer, random generators and memory back as they were; returns the place."""
    state = checkpoint.read_json(folder / f"{STATE}.json")
    _check_same_work(folder, state["fingerprint"], fingerprint)
    load_weights(model, folder, devices)
    tensors = load_file(folder / f"{STATE}.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in _under(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = devices.cut_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if memory is not None:
        memory.load_state_dict(_under(tensors, "memory."))
    _set_random_state(_under(tensors, "random."))
    return Place(**state["place"])


def load_weights(model: Any, folder: Path, devices: Devices) -> None:
    """Puts a checkpoint's weights into a model of the same kind: those of its adapter, if it has one."""
    if adapters.is_adapted(model):
        adapters.load(model, folder, devices)
        return
    # Through transformers, which knows how a model's names on disk differ from those in memory.
    saved = type(model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    own = model.state_dict()
    model.load_state_dict(
        {name: devices.cut_like(tensor, own[name]) for name, tensor in saved.state_dict().items()}
    )


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same_work(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise ConfigError(
            f"{folder} was made with other settings or data, so continuing it would be neither run; "
            f"changed: {', '.join(changed)}"
        )


def _random_state() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
