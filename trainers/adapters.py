"""LoRA adapters (Hu et al. 2021, section 4.1), through PEFT: W x becomes W x + alpha/r B A x.

Only A and B are trained, and a reward model's head; W is never written to. PEFT's layers are put into the
model in place, so that it stays the model of transformers that it was: what reads its hidden states, its head
or its configuration needs not know. B starts at zero, so the adapted model starts as the one without.

Step checkpoints hold the adapter alone. A run ends with the merged model, W + alpha/r B A, which everything
that loads a checkpoint reads, or with the adapter in PEFT's format (--save_adapter).

Departure: no dropout, neither here nor in the model (models.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainers.adapter_config import ALL_LINEAR, AdapterConfig
from trainers.checkpoint import ADAPTER_WEIGHTS
from trainers.devices import Devices
from trainers.errors import ConfigError

HEAD = "score"
NAME = "default"
"""What PEFT calls an adapter that is the only one."""
ON_DISK = "base_model.model."
"""What PEFT puts before the names of a model's parameters."""


def add(model: Any, config: AdapterConfig, base_name: str) -> str:
    """Puts a new adapter, drawn by the seed, into a model; returns a line for the user.

    Raises ConfigError where a layer that shall be changed is not there.
    """
    # Here, because it takes a while to import and only these runs need it.
    import peft
    from transformers.pytorch_utils import Conv1D

    linear = {
        name: module
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    targets = _targets(config.lora_target_modules, list(linear), base_name)
    has_head = isinstance(getattr(model, HEAD, None), torch.nn.Linear)
    lora = peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in linear.values()),
        task_type="SEQ_CLS" if has_head else "CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        peft.inject_adapter_in_model(lora, model, NAME)
    if has_head:
        getattr(model, HEAD).requires_grad_(True)
        lora.modules_to_save = [HEAD]
    lora.target_modules = targets  # in one order: PEFT keeps a set
    lora.inference_mode = True  # on disk: who loads it without saying more wants to use it
    return describe(model)


def describe(model: Any) -> str:
    """One line for the user: what is trained."""
    lora, count = model.peft_config[NAME], sum(1 for _ in _layers(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    head = f" and {HEAD}" if lora.modules_to_save else ""
    return (
        f"LoRA of rank {lora.r} in {count} layers ({', '.join(lora.target_modules)}){head}: {trained:,} of "
        f"{total:,} parameters are trained ({trained / total:.1%})"
    )


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter."""
    return hasattr(model, "peft_config")


@contextmanager
def off(model: Any) -> Iterator[None]:
    """The model as it was before it was trained: the reference that belongs to it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _, layer in _layers(model):
        layer.enable_adapters(False)
    # PEFT freezes what it switches off, which FSDP2, at its first forward pass, would take for good.
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for _, layer in _layers(model):
            layer.enable_adapters(True)


def share_frozen(model: Any, other: Any) -> None:
    """Lets a model have the weights that it does not train (none, without an adapter) in common with another
    one, where they are the same and that one does not train them either.
    """
    there = {_plain(name): weight for name, weight in other.named_parameters() if not weight.requires_grad}
    for name, weight in model.named_parameters():
        twin = there.get(_plain(name))
        if not weight.requires_grad and twin is not None and torch.equal(weight, twin):
            weight.data = twin.data


# ---- saving and loading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saveable:
    """What checkpoint.save takes: a model, with its weights where it does not hold them as they shall be."""

    model: Any
    weights: dict[str, torch.Tensor] | None

    def save_pretrained(self, folder: Path) -> None:
        """Writes them as transformers (or PEFT) does."""
        self.model.save_pretrained(folder, **({} if self.weights is None else {"state_dict": self.weights}))


class AdapterAlone:
    """An adapter without its model, which saves itself as PEFT would."""

    def __init__(self, lora: Any, tensors: dict[str, torch.Tensor]) -> None:
        self.lora, self.tensors = lora, tensors

    def save_pretrained(self, folder: Path) -> None:
        """Writes PEFT's two files."""
        tensors = {to_disk(name): tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        self.lora.save_pretrained(folder)


def changing(model: Any) -> dict[str, torch.Tensor]:
    """What a run changes of a model's state: the trained part of it, or without an adapter all."""
    if not is_adapted(model):
        state: dict[str, torch.Tensor] = model.state_dict()
        return state
    named = model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}


def as_step(model: Any, devices: Devices) -> Saveable:
    """What a step checkpoint holds: the adapter, where there is one. Wanted in all processes at once."""
    if not is_adapted(model):
        return Saveable(model, devices.weights(model))
    trained = {name: devices.whole(tensor) for name, tensor in changing(model).items()}
    return Saveable(AdapterAlone(model.peft_config[NAME], trained), None)


def as_result(model: Any, devices: Devices, save_adapter: bool) -> Saveable:
    """What a run ends with. Wanted in all processes at once."""
    if save_adapter or not is_adapted(model):
        return as_step(model, devices)
    weights = devices.weights(model)
    return Saveable(model, merged(model) if weights is None else merge(model, weights))


def merged(model: Any) -> dict[str, torch.Tensor]:
    """The state of a model that may have an adapter, as that of one without; its own weights stay."""
    return merge(model, model.state_dict()) if is_adapted(model) else model.state_dict()


def merge(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of an adapted model -> that of the model that computes the same without an adapter.

    An empty state (of a process that holds none) stays empty.
    """
    plain = {_plain(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in _layers(model):
        if state:
            a, b = (state[f"{name}.lora_{side}.{NAME}.weight"] for side in "AB")
            # In float32, also in the middle of a run in bfloat16.
            with torch.autocast(a.device.type, enabled=False):
                change = layer.scaling[NAME] * (b @ a)
            key = f"{name}.weight"
            plain[key] = plain[key] + (change.T if layer.fan_in_fan_out else change)
    return plain


def load(model: Any, folder: Path, devices: Devices) -> None:
    """Puts a checkpoint's adapter into a model that has one of the same shape."""
    saved = load_file(folder / ADAPTER_WEIGHTS)
    own = changing(model)
    state = {name: devices.cut_like(saved[to_disk(name)], tensor) for name, tensor in own.items()}
    model.load_state_dict(state, strict=False)


def to_disk(name: str) -> str:
    """A parameter's name in memory -> its name in PEFT's file."""
    return ON_DISK + name.replace(f".{NAME}.", ".")


def _plain(name: str) -> str:
    """A weight's name in a model with an adapter -> its name in one without."""
    return name.replace(".base_layer.", ".")


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that the adapter changes, by name."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def _targets(wanted: list[str] | None, linear: list[str], base_name: str) -> list[str]:
    """The names for PEFT, in one order; each ends the name of a linear layer."""
    there = sorted({name.rpartition(".")[2] for name in linear})
    if wanted is None or wanted == [ALL_LINEAR]:
        return there
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"--lora_target_modules {target}: {base_name} has no linear layer of that name before its "
                f"head; there are {', '.join(there)}"
            )
    return sorted(set(wanted))
