"""One device or several: what a run computes, and what it leaves, is the same.

Under `accelerate launch` (or torchrun) each process holds one device and takes its part of every batch; the
parts together are the batch that one process would take (data.py). What a step adds up (losses, units,
gradients) is added up over all processes before anything is divided, so that the mean is over the units of
the whole batch. The first process writes; all of them read.

Here is what there is to say to devices, and the answers of a single one. Those of several are in
processes.py, which is imported where several processes were launched, and not otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from trainers.data import WHOLE, Part

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class Devices:
    """The one device of a single process."""

    def __init__(self, device: torch.device, part: Part = WHOLE) -> None:
        self.device, self.part = device, part

    def __str__(self) -> str:
        return str(self.device)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes."""
        return self.part.index == 0

    def place(self, model: Any) -> Any:
        """Brings a model to the device; returns it."""
        return model.to(self.device)

    def whole_model(self, model: Any) -> tuple[Any, Callable[[], None]]:
        """A model to be asked in this process alone, and what gives it the weights that are trained meanwhile
        (in all processes at once). Wanted before the model is placed, which itself will do where it stays
        whole.
        """
        return model, lambda: None

    def call(self, model: Any, compute: Callable[..., T], *args: Any, is_last: bool = True) -> T:
        """`compute(*args)` with a placed model, which it uses.

        Gradients are added up over all processes by the backward pass of a model's last call in a step. It
        starts from a tensor that is returned, alone or in a tuple.
        """
        return compute(*args)

    def add_up(self, numbers: list[float]) -> list[float]:
        """Sums over all processes, each of which hands in as many."""
        return numbers

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes; it may be put in its place."""
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order; tensors on the CPU."""
        return [value]

    def share(self, compute: Callable[[list[ItemT]], Sequence[T]], items: Sequence[ItemT]) -> list[T]:
        """`compute(items)`, one result for each, of which every process computes its part.

        What goes wrong in any of them is raised in all. Where the processes wait for each other in `compute`,
        they do so before anything that may go wrong in one alone.
        """
        return list(compute(list(items)))

    def on_main(self, action: Callable[[], T]) -> T:
        """Does something in the first process alone; the others wait, and get its result or its error."""
        return action()

    def weights(self, model: Any) -> dict[str, torch.Tensor] | None:
        """Where a model lies in parts, all of its state (in the first process; empty in the others)."""
        return None

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """All of a tensor, on the CPU where it lay in parts; wanted in all processes at once."""
        return tensor

    def cut_like(self, tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        """A whole tensor, of which this process gets its part where the pattern lies in parts."""
        return tensor
