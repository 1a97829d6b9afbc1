"""What vLLM's workers learn from us: to take a policy's weights while they run.

In this process rollout_vllm.py names it to the engine; a server is started with it:

    VLLM_SERVER_DEV_MODE=1 vllm serve DIR --worker-extension-cls trainers.rollout_worker.PolicyWeights ...
"""

from collections.abc import Iterator
from typing import Any

import torch

Weights = Iterator[tuple[str, torch.Tensor]]


class PolicyWeights:
    """Mixed into the class of vLLM's workers; its methods are called by name (`collective_rpc`)."""

    reload_weights: Any
    model_runner: Any

    def load_policy(self, weights_path: str | None = None, weights_iterator: Weights | None = None) -> None:
        """Takes weights under a checkpoint's names, from a folder with safetensors or from memory."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=weights_path, weights_iterator=weights_iterator)
        # On a CPU a layer multiplies by a packed copy of its weights, and a head that is tied to the
        # embedding is passed over when they are loaded: its copy would stay that of the old weights.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
