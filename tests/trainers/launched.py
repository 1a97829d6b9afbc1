"""How tests start a program in two processes on this machine, by `accelerate launch`."""

import sys

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--main_process_port", "0"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
WAYS = {"ddp": ["--multi_gpu"], "fsdp2": ["--use_fsdp", "--fsdp_version", "2"]}


def command(way: str, *words: str) -> list[str]:
    """The words that start it."""
    return [*ACCELERATE, *WAYS[way], *words]
