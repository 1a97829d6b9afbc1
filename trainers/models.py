"""The models: policy, frozen reference, reward model, and the tokenizer that belongs to them.

Weights are loaded in float32 from safetensors; dropout is off everywhere (the models stay in eval mode), so
that a log-probability does not depend on chance. Any causal transformer of transformers will do that keeps
two promises, which are tried out on load: its logits are its output head applied to its last hidden states,
and no position sees a later one (padding needs no mask then).
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from trainers import checkpoint
from trainers.chat import choose_template
from trainers.checkpoint import Parent
from trainers.data import CausalBatch, RewardBatch
from trainers.errors import CheckpointError, translate
from trainers.fused import fuse
from trainers.logprobs import hidden_states, states_at, target_states
from trainers.packed_attention import is_packable

PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|padding|>")
EAGER_BELOW = 400
"""Tokens. In bfloat16 on a CPU, torch's fused attention has a slow backward pass on short rows: attention by
plain products (packed_attention.py) trained 1.35 times as fast at 36-128 tokens, 1.2 times at 400; from
there on its weights take memory. In float32 it is no faster from 128 tokens on."""


def load_tokenizer(parent: Parent, chat_template_path: str | None) -> tuple[Any, list[str]]:
    """Loads the tokenizer with a real chat template (or none) and a pad token that is no end token.

    Returns it with notes for the user on what was changed.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, parent, local_files_only=True)
    tokenizer.chat_template = choose_template(tokenizer, chat_template_path)
    tokenizer.padding_side = "right"
    notes = [] if tokenizer.chat_template else ["the tokenizer has no chat template that tells roles apart"]
    config = checkpoint.read_json(parent.folder / "config.json")
    if note := _choose_pad(tokenizer, end_token_ids(parent, tokenizer), int(config.get("vocab_size", 0))):
        notes.append(note)
    return tokenizer, notes


def end_token_ids(parent: Parent, tokenizer: Any) -> list[int]:
    """Every id that ends generation: the tokenizer's and generation_config.json's."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    file = parent.folder / "generation_config.json"
    listed = checkpoint.read_json(file).get("eos_token_id") if file.is_file() else None
    listed = [listed] if isinstance(listed, int) else listed or []
    return ids + [id_ for id_ in listed if id_ not in ids]


def answer_end_token_ids(parent: Parent, tokenizer: Any) -> list[int]:
    """The same; raises CheckpointError where there is none, for then every answer would be cut off."""
    ids = end_token_ids(parent, tokenizer)
    if not ids:
        raise CheckpointError(f"{parent.name}: names no end token, so no answer would end")
    return ids


def load_policy(parent: Parent, tokenizer: Any, attention: str) -> Any:
    """Loads a causal language model for training."""
    from transformers import AutoModelForCausalLM

    model, _ = _load_model(AutoModelForCausalLM, parent, attention, may_lack=set())
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = end_token_ids(parent, tokenizer)
    _check_causal(model, parent)
    _check_head(model, parent)
    return model


def add_end_tokens(policy: Any, ids: set[int]) -> None:
    """Makes generation stop at the end-of-turn tokens that were trained."""
    known = policy.generation_config.eos_token_id
    policy.generation_config.eos_token_id = known + sorted(ids - set(known))


def freeze(model: Any) -> Any:
    """A frozen copy: the reference policy."""
    return copy.deepcopy(model).requires_grad_(False)


def load_reward_model(
    parent: Parent, tokenizer: Any, attention: str, seed: int, has_head: bool = False
) -> Any:
    """Loads a model with a reward head: one label, no bias, new with deviation 1/sqrt(d + 1).

    With `has_head` a checkpoint without one is refused.
    """
    model, is_new = _load_scoring(parent, tokenizer, attention, has_head)
    if is_new:
        # Stiennon et al. 2020: neither saturated nor dead at the start, whatever the width.
        head = model.score
        random = torch.Generator().manual_seed(seed)
        std = 1 / math.sqrt(head.in_features + 1)
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=random) * std)
    return model


def load_value_model(parent: Parent, tokenizer: Any, attention: str) -> Any:
    """Loads a value model: a reward model's checkpoint as it is, or another with a head of zeros (Ziegler et
    al. 2019).
    """
    model, is_new = _load_scoring(parent, tokenizer, attention, has_head=False)
    if is_new:
        torch.nn.init.zeros_(model.score.weight)
    return model


def rewards(model: Any, batch: RewardBatch) -> torch.Tensor:
    """Raw rewards of conversations: the head on the last token's hidden state, (B,), float32."""
    starts_B = torch.arange(len(batch.last_B), device=batch.last_B.device) * batch.input_ids_BT.shape[1]
    hidden_BD = states_at(model, batch, starts_B + batch.last_B)
    # A product and a sum stay float32 under autocast, where a matrix product would not.
    rewards_B: torch.Tensor = (hidden_BD.float() * model.score.weight).sum(-1)
    return rewards_B


def values(model: Any, batch: CausalBatch) -> torch.Tensor:
    """Raw values before each target token: the head on the hidden state that predicts it, (N,), float32."""
    values_N: torch.Tensor = (target_states(model, batch).float() * model.score.weight).sum(-1)
    return values_N


def context_length(parent: Parent) -> int | None:
    """The longest sequence the checkpoint can read, in tokens, if it says so."""
    length = checkpoint.read_json(parent.folder / "config.json").get("max_position_embeddings")
    return length if isinstance(length, int) else None


def choose_attention(requested: str, lengths: Sequence[int], device: torch.device, bf16: bool) -> str:
    """Picks the faster attention for most of the data's lengths, unless one is asked for."""
    if requested != "auto":
        return requested
    typical = sorted(lengths)[len(lengths) * 9 // 10]
    return "eager" if device.type == "cpu" and bf16 and typical < EAGER_BELOW else "sdpa"


def _load_scoring(parent: Parent, tokenizer: Any, attention: str, has_head: bool) -> tuple[Any, bool]:
    """A model with a head `score` of one label, and whether that head is new."""
    from transformers import AutoModelForSequenceClassification

    head_name = "score.weight"
    model, missing = _load_model(
        AutoModelForSequenceClassification,
        parent,
        attention,
        may_lack=set() if has_head else {head_name},
        num_labels=1,
    )
    head: Any = getattr(model, "score", None)
    parameters = [name for name, _ in head.named_parameters()] if isinstance(head, torch.nn.Linear) else []
    if parameters != ["weight"] or head.out_features != 1:
        raise CheckpointError(f"{parent.name}: this architecture has no bias-free reward head named `score`")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    _check_causal(model, parent)
    return model, head_name in missing


def _load_model(
    auto_class: Any, parent: Parent, attention: str, may_lack: set[str], **settings: Any
) -> tuple[Any, set[str]]:
    model, report = _load(
        auto_class,
        parent,
        dtype=torch.float32,
        attn_implementation=attention,
        use_safetensors=True,
        output_loading_info=True,
        **settings,
    )
    missing = set(report["missing_keys"])
    if lacking := sorted(missing - may_lack):
        raise CheckpointError(f"{parent.name}: not a full checkpoint for this: {lacking[0]} is missing")
    if report["mismatched_keys"]:
        name = min(report["mismatched_keys"])[0]
        raise CheckpointError(f"{parent.name}: {name} has another shape than config.json says")
    prepare(model)
    return model, missing


def prepare(model: Any) -> None:
    """Readies a model for training: no dropout, layers by hand (fused.py), packed rows where they will do."""
    model.eval()
    fuse(model)
    model.is_packable = is_packable(model)


def _load(auto_class: Any, parent: Parent, **settings: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return auto_class.from_pretrained(parent.folder, trust_remote_code=False, **settings)
    except Exception as error:  # a damaged checkpoint raises whatever its reader trips over
        if known := translate(error):
            raise known from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{parent.name}: cannot be loaded: {reason}") from error


def _choose_pad(tokenizer: Any, end_ids: Sequence[int], num_embeddings: int) -> str | None:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in end_ids:
        return None
    vocabulary = tokenizer.get_vocab()
    named = [name for name in PAD_NAMES if name in vocabulary and vocabulary[name] not in end_ids]
    if named:
        tokenizer.pad_token = named[0]
    elif len(tokenizer) < num_embeddings:
        # The embedding has rows that no token uses: one of them becomes the pad token, nothing is resized.
        tokenizer.add_special_tokens({"pad_token": PAD_NAMES[0]})
    elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in end_ids:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        raise CheckpointError(
            "the tokenizer has no pad token apart from its end token, and no unused id to make one of"
        )
    return (
        f"pad token: {tokenizer.pad_token} (id {tokenizer.pad_token_id}), because it must not be an end token"
    )


@torch.no_grad()
def _check_causal(model: Any, parent: Parent) -> None:
    first = hidden_states(model, torch.tensor([[1, 2, 3, 4]]))
    second = hidden_states(model, torch.tensor([[1, 2, 3, 5]]))
    if not torch.allclose(first[:, :3], second[:, :3], atol=1e-5):
        raise CheckpointError(f"{parent.name}: not a causal model: a position sees later ones")


@torch.no_grad()
def _check_head(model: Any, parent: Parent) -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    whole = model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(whole, model.get_output_embeddings()(hidden_states(model, ids)), atol=1e-4):
        raise CheckpointError(
            f"{parent.name}: this architecture changes its logits after the output head: not supported"
        )
