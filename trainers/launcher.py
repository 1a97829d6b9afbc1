"""What `accelerate launch` (or torchrun) says, by the environment of the processes that it starts.

Torch is imported to open devices, and accelerate to open several, not before.
"""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from trainers.config import RunConfig
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.devices import Devices

REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "FSDP_OFFLOAD_PARAMS": "parameters offloaded to the CPU",
    "FSDP_ACTIVATION_CHECKPOINTING": "activation checkpointing",
}
"""What accelerate may ask for by these variables, and the trainers do not do: refused, not ignored."""


def count_processes() -> int:
    """How many processes were launched together, by the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def open_devices(config: RunConfig) -> "Devices":
    """The device of this process; joins the other processes where several were launched."""
    import torch

    from trainers.devices import Devices

    if count_processes() == 1:
        use_cuda = torch.cuda.is_available() and not config.use_cpu
        return Devices(torch.device("cuda" if use_cuda else "cpu"))
    check_wishes(config)
    from trainers.processes import join

    return join(config.use_cpu, is_on("ACCELERATE_USE_FSDP"), is_on("FSDP_RESHARD_AFTER_FORWARD", "true"))


def leave(exit_code: int) -> NoReturn:
    """Ends this process; one of several without Python's own end.

    A thread of gloo or NCCL may still hold the last tensors it worked on. To let go of them it needs Python,
    and where Python is ending already, that aborts the process (Python below 3.14).
    """
    if count_processes() == 1 or "torch" not in sys.modules:
        sys.exit(exit_code)
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def is_on(name: str, default: str = "false", environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable of the environment says yes."""
    return environment.get(name, default).lower() in ("1", "true", "yes")


def check_wishes(config: RunConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError where the launcher asks for something that is not to be had."""
    for name, meaning in REFUSED.items():
        if is_on(name, environment=environment):
            raise ConfigError(
                f"accelerate asks for {meaning}, which the trainers do not support: launch with --multi_gpu, "
                "or with --use_fsdp --fsdp_version 2"
            )
    is_fsdp = is_on("ACCELERATE_USE_FSDP", environment=environment)
    if is_fsdp and environment.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("of FSDP only version 2 is supported: launch with --use_fsdp --fsdp_version 2")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if config.bf16 else "no"):
        raise ConfigError(f"accelerate asks for {precision}: leave that out, and give --bf16 to the trainer")
