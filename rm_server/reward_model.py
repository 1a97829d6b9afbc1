"""The model itself: loads an opened checkpoint, and turns token ids into raw logits. The only torch here.

Works for any ...ForSequenceClassification of transformers. Where the head is a linear `score` on the last
token, as in all decoder models, the last token is found by the attention mask (transformers looks for the
pad id, and errs where a text ends in it) and the head is computed in float32, there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
import transformers

from rm_server.blueprint import check_blueprint, keep_in_memory
from rm_server.checkpoint import Checkpoint
from rm_server.errors import CheckpointError, OutOfMemoryError, StartError

T = TypeVar("T")
DType = Literal["float32", "bfloat16"]


class RewardModel:
    """A scorer (see batcher.Scorer). Not thread-safe: one thread calls `score`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.get_text_config()
        self._pad_id = config.pad_token_id or 0  # any id will do: it is masked
        head = getattr(model, "score", None)
        self._head = head.float() if isinstance(head, torch.nn.Linear) else None
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.labels: list[str] = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    @torch.inference_mode()
    def score(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """Token ids, one non-empty list per row -> float32 logits, rows x labels."""
        lengths_B = torch.tensor([len(ids) for ids in batch])
        longest = int(lengths_B.max())
        ids_BT = torch.tensor([[*ids, *[self._pad_id] * (longest - len(ids))] for ids in batch])
        mask_BT = (torch.arange(longest) < lengths_B[:, None]).long()
        device = self._model.device
        logits_BL = self._logits(ids_BT.to(device), mask_BT.to(device), lengths_B.to(device))
        rows: list[list[float]] = logits_BL.float().tolist()
        return rows

    def _logits(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self._head is None:  # an encoder, whose own head reads its first token
            logits: torch.Tensor = self._model(ids_BT, attention_mask=mask_BT).logits
            return logits
        backbone = getattr(self._model, self._model.base_model_prefix)
        hidden_BTD = backbone(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        last_BD = hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), lengths_B - 1]
        scores_BL: torch.Tensor = self._head(last_BD.float())
        return scores_BL


def load_model(checkpoint: Checkpoint, dtype: DType, device: str) -> RewardModel:
    """Builds the model; refuses missing, misshapen, unknown head or non-finite weights. Raises StartError."""

    def build() -> tuple[Any, dict[str, Any]]:
        built: tuple[Any, dict[str, Any]] = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        return built

    _translated(checkpoint, "its config.json does not make a model", lambda: check_blueprint(checkpoint))
    model, info = _translated(checkpoint, "its weights do not make a model", build)
    _check_tensors(checkpoint, info)
    keep_in_memory(model)
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{checkpoint.folder}: {name} holds NaN or infinite weights")
    return RewardModel(_translated(checkpoint, f"cannot run on {device}", lambda: model.eval().to(device)))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, which must have a chat template. Raises CheckpointError."""
    tokenizer = _translated(
        checkpoint,
        "its tokenizer cannot be loaded",
        lambda: transformers.AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        ),
    )
    if not tokenizer.chat_template:
        raise CheckpointError(f"{checkpoint.folder}: its tokenizer has no chat template")
    return tokenizer


def use_threads(num_threads: int) -> None:
    """How many cores one forward pass uses."""
    torch.set_num_threads(num_threads)


def pick_device() -> str:
    """The first GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_tensors(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    """A missing tensor would be random, and a head's unknown tensor (a bias, say) would not be applied."""
    foreign_head = {name for name in info["unexpected_keys"] if name.startswith("score.")}
    for what, names in (("lacks", info["missing_keys"]), ("has, and cannot use,", foreign_head)):
        if names:
            listed = ", ".join(sorted(map(str, names))[:5])
            raise CheckpointError(
                f"{checkpoint.folder}: the checkpoint {what} {listed} ({len(names)} in all)"
            )


def _translated(checkpoint: Checkpoint, problem: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except StartError:
        raise  # ours, and in our words
    except Exception as error:  # transformers raises nearly every kind there is on a bad folder
        if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error):
            raise OutOfMemoryError(f"{checkpoint.folder}: not enough memory to load it") from error
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"{checkpoint.folder}: {problem}: {reason}") from error
