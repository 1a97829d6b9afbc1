"""Before weights are loaded: what a configuration would build. After: weights that are nobody else's.

A configuration is built on torch's meta device, where tensors have shapes and no memory. One that describes
much more than its files hold is refused there, whatever dimension is absurd.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from rm_server.checkpoint import Checkpoint
from rm_server.errors import CheckpointError

# Tied and converted weights make a model's own count differ from its files', but not by this much.
MAX_RATIO = 2
SLACK = 1_000_000


def check_blueprint(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where config.json describes far more numbers than the files hold, and whatever
    transformers raises where it describes no model at all."""
    config = transformers.AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    described = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    if described > MAX_RATIO * checkpoint.num_weights + SLACK:
        raise CheckpointError(
            f"{checkpoint.folder}: config.json describes {described} weights, but the files hold "
            f"{checkpoint.num_weights}"
        )


def keep_in_memory(model: Any) -> None:
    """Copies weights that lie in a mapped file: whoever writes over the file would change, or cut off, what
    is being served."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
