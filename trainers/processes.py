"""Several devices, each held by a process (devices.py says what for).

    Replicated    torch's DDP: every process holds the whole model, and gradients are added up
    Sharded       torch's FSDP2: parameters, gradients and moments are cut up, one part for each process

Accelerate starts the processes, chooses the backend, and says which of the two is wanted. Its own FSDP2 is
not used: on a CPU it silently becomes DDP, and a loss here may be more than one forward pass through a model.
"""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trainers.data import Part, join_parts
from trainers.devices import Devices
from trainers.errors import TrainerError, translate

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class Replicated(Devices):
    """A process for each device, each with the whole model."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, Part(distributed.get_rank(), distributed.get_world_size()))
        self.roots: dict[int, Any] = {}

    def __str__(self) -> str:
        return f"{self.part.count} processes with a {self.device.type} each"

    def place(self, model: Any) -> Any:
        """Brings a model to the device, the same weights in every process."""
        model.to(self.device)
        if any(parameter.requires_grad for parameter in model.parameters()):
            self.roots[id(model)] = DistributedDataParallel(_Root(model), forward_sync_buffers=False)
        return model

    def call(self, model: Any, compute: Callable[..., T], *args: Any, is_last: bool = True) -> T:
        """`compute(*args)` with a placed model; in its last call of a step DDP adds up the gradients."""
        if not torch.is_grad_enabled():
            return compute(*args)
        root = self.roots[id(model)]
        root.require_backward_grad_sync = is_last
        result: T = root(compute, *args)
        return result

    def add_up(self, numbers: list[float]) -> list[float]:
        """Sums over all processes, in double precision."""
        sums = self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        return [float(number) for number in sums.tolist()]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, put in its place."""
        distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.add_up([float(flag)])[0] > 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        values: list[Any] = [None] * self.part.count
        distributed.all_gather_object(values, value)
        return values

    def share(self, compute: Callable[[list[ItemT]], Sequence[T]], items: Sequence[ItemT]) -> list[T]:
        """`compute(items)`, of which every process computes its part; the first error is raised in all."""
        found: Sequence[T] = []
        unknown = told = None
        try:
            found = compute(self.part.of(items))
        except Exception as error:  # whatever it is, the others must not wait for it for ever
            told = translate(error)
            if told is None:
                unknown, told = error, TrainerError(f"another process failed: {error}")
        parts = self.gather((list(found), told))
        if unknown is not None:
            raise unknown
        for _, failure in parts:
            if failure is not None:
                raise failure
        return join_parts([part for part, _ in parts])

    def on_main(self, action: Callable[[], T]) -> T:
        """Does something in the first process; what goes wrong there is told to the others."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:  # whatever it is, the others must not wait for it for ever
                self._share([None, translate(error) or TrainerError(f"the first process failed: {error}")])
                raise
        outcome = self._share(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def _share(self, outcome: list[Any]) -> list[Any]:
        distributed.broadcast_object_list(outcome, device=self.device)
        return outcome


class Sharded(Replicated):
    """A process for each device, each with a part of every parameter."""

    def __init__(self, device: torch.device, reshard_after_forward: bool) -> None:
        super().__init__(device)
        self.mesh = init_device_mesh(device.type, (self.part.count,))
        self.reshard_after_forward = reshard_after_forward

    def __str__(self) -> str:
        return f"{super().__str__()}, parameters sharded"

    def place(self, model: Any) -> Any:
        """Cuts up a model: the layers that its architecture names one by one, and what is left together."""
        names = set(model._no_split_modules or ())
        for layer in [module for module in model.modules() if type(module).__name__ in names]:
            fully_shard(layer, mesh=self.mesh, reshard_after_forward=self.reshard_after_forward)
        self.roots[id(model)] = fully_shard(_Root(model), mesh=self.mesh)
        return model

    def whole_model(self, model: Any) -> tuple[Any, Callable[[], None]]:
        """A copy, and what gathers the trained weights for it."""
        copied = copy.deepcopy(model).requires_grad_(False).to(self.device)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

        @torch.no_grad()
        def refresh() -> None:
            weights = dict(copied.named_parameters())
            for name, parameter in model.named_parameters():
                if name in trained:
                    weights[name].copy_(self.whole(parameter.detach()))

        return copied, refresh

    def call(self, model: Any, compute: Callable[..., T], *args: Any, is_last: bool = True) -> T:
        """`compute(*args)` with a placed model; FSDP2 adds up gradients in every backward pass."""
        root = self.roots[id(model)]
        if root.is_computing:  # the model, its adapter off, is asked in the middle of its own forward pass
            return compute(*args)
        result: T = root(compute, *args)
        if not torch.is_grad_enabled():
            # No backward pass will do it, and weights that stay gathered would miss the next change of them.
            for module in root.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return result

    def weights(self, model: Any) -> dict[str, torch.Tensor]:
        """All of a model's state, gathered tensor by tensor; kept in the first process alone."""
        state = model.state_dict(keep_vars=True)
        gathered: dict[int, torch.Tensor] = {}
        for tensor in state.values():
            if id(tensor) not in gathered:  # tied parameters are one tensor, and stay one
                whole = self.whole(tensor.detach())
                gathered[id(tensor)] = whole if self.is_main else whole.new_empty(0)
        return {name: gathered[id(tensor)] for name, tensor in state.items()} if self.is_main else {}

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """All of a tensor, on the CPU."""
        return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor

    def cut_like(self, tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        """This process's part, by which every process has read the whole: nothing needs to be sent."""
        if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
            return tensor
        moved = tensor.to(self.device, pattern.dtype)
        return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)


class _Root(torch.nn.Module):
    """Computes anything with a model inside one forward pass, which DDP and FSDP2 watch over."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.is_computing = model, False

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        """`compute(*args)`."""
        self.is_computing = True
        try:
            return compute(*args)
        finally:
            self.is_computing = False


def join(use_cpu: bool, is_sharded: bool, reshard_after_forward: bool) -> Replicated:
    """Joins the processes that were launched together."""
    # Read by transformers: all processes but the first would load a model without its weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    device = PartialState(cpu=use_cpu).device
    return Sharded(device, reshard_after_forward) if is_sharded else Replicated(device)
