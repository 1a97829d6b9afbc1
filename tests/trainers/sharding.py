"""Run by `accelerate launch` in test_devices.py: writes what a placed model looks like in each process.

accelerate launch ... tests/trainers/sharding.py CHECKPOINT OUTPUT
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from trainers.config import RunConfig
from trainers.data import CausalBatch, Tokens, collate_tokens
from trainers.launcher import leave, open_devices
from trainers.logprobs import token_logprobs


def main(checkpoint: str, output: str) -> None:
    """Places a model, and says of every parameter what it is and how much of it lies here."""
    devices = open_devices(RunConfig(output_dir=output, use_cpu=True))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    batch: CausalBatch = collate_tokens([Tokens([5, 9, 30, 1], [2, 3])], pad_token_id=0)
    alone = token_logprobs(model, batch).detach()
    devices.place(model)
    with torch.no_grad():
        together = devices.call(model, token_logprobs, model, batch)
    parts = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    found = {
        "whole": sum(sizes.values()),
        "here": sum(p.to_local().numel() for p in parts.values()),
        "sharded": sorted(parts) == sorted(sizes),
        "same": bool(torch.equal(alone, together)),
        "sums": devices.add_up([1.0, devices.part.index]),
        "any": [devices.any(devices.is_main), devices.any(False)],
        "gathered": devices.gather(devices.part.index),
        "from_main": devices.on_main(lambda: devices.part.index),
    }
    (Path(output) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
