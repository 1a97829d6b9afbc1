"""One tiny random-weights reward model of each architecture whose way of reading texts differs."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

VOCABULARY = 320
MAX_LENGTH = 256
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Wide enough for scores to differ visibly; at 0.2 the rounding of transformers itself comes near 1e-5.
    "initializer_range": 0.1,
    "num_labels": 1,
}
ENCODER = {name: value for name, value in DECODER.items() if name != "num_key_value_heads"}
WINDOW = {"sliding_window": 24}  # shorter than the texts of the tests
LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}

# name -> (class prefix, settings): models that read packed rows, and models that cannot.
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", DECODER),
    "qwen2": ("Qwen2", DECODER),
    "qwen2-window": ("Qwen2", {**DECODER, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**DECODER, "head_dim": 16}),
    "mistral-window": ("Mistral", {**DECODER, **WINDOW}),
    "mixtral": ("Mixtral", DECODER),
    "gemma": ("Gemma", {**DECODER, "head_dim": 16}),
    "gemma2-window-softcap": (
        "Gemma2",
        {**DECODER, **WINDOW, "head_dim": 16, "attn_logit_softcapping": 2.0},
    ),
    "gemma3-window": ("Gemma3Text", {**DECODER, **WINDOW, "head_dim": 16}),
    "gpt2-learned-positions": (
        "GPT2",
        {**ENCODER, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH},
    ),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-bidirectional": ("Bert", ENCODER),
    "bloom-alibi": ("Bloom", {**ENCODER, "n_layer": 2, "n_head": 4}),
    "gpt-oss-sinks": ("GptOss", {**DECODER, **WINDOW, "head_dim": 16, "num_local_experts": 4}),
    "phi3-rotation-of-batch": ("Phi3", {**DECODER, "rope_parameters": LONG_ROPE}),
    "jamba-recurrent": (
        "Jamba",
        {
            **DECODER,
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "num_experts": 2,
            "mamba_dt_rank": 4,
            "mamba_d_state": 8,
        },
    ),
}


def build(name: str, **changes: Any) -> Any:
    """The model, the same each time, in evaluation mode."""
    prefix, settings = (PACKED | PADDED)[name]
    if name.startswith(("gpt2", "bloom")):
        settings = {key: value for key, value in settings.items() if not key.startswith(("hidden", "num_h"))}
    config_class = getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}ForSequenceClassification")
    torch.manual_seed(7)
    return model_class(config_class(**copy.deepcopy(settings), **changes)).eval()


def alone(name: str, model: Any, ids: list[int]) -> float:
    """transformers' own answer for one unpadded text."""
    if name.startswith("gemma2"):
        model.set_attn_implementation("eager")  # transformers' others leave the cap out
    with torch.no_grad():
        if not hasattr(model, "score"):
            return float(model(torch.tensor([ids])).logits[0, 0])
        backbone = getattr(model, model.base_model_prefix)
        hidden = backbone(torch.tensor([ids]), use_cache=False).last_hidden_state
        return float(model.score(hidden)[0, -1, 0])
