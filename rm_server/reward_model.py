"""The model itself: loads an opened checkpoint, and turns token ids into raw logits.

Works for any ...ForSequenceClassification of transformers. Where the head is a linear `score` on the last
token, as in all decoder models, the last token is found by the attention mask (transformers looks for the
pad id, and errs where a text ends in it) and the head is computed in float32, there alone.

A decoder reads a batch as one packed row in which prompts stand once (packed_model.py), if that gives the
scores of a plain forward: when a model is made, both are tried on random tokens. Any other model reads
full texts, padded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
import transformers

from rm_server.blueprint import check_blueprint, keep_in_memory
from rm_server.checkpoint import Checkpoint
from rm_server.errors import CheckpointError, OutOfMemoryError, StartError
from rm_server.metrics import Metrics
from rm_server.packed_attention import NAME, NotPackableError
from rm_server.packed_model import PackedModel, depends_on_batch, why_not_packable
from rm_server.packing import TextIds
from rm_server.prepared_linear import prepare, restore
from rm_server.prompt_cache import PromptCache

T = TypeVar("T")
DType = Literal["float32", "bfloat16"]
TOLERANCE = 1e-5  # of the larger of 1 and the score: what may differ between batches in float32
LOW_PRECISION_TOLERANCE = 0.1  # in bfloat16: root mean square, of the scores' standard deviation
PROBE_TOKENS = 40  # of each part of the texts on which packing is tried
PROBE_CACHE_BYTES = 2**28


class RewardModel:
    """A scorer (see batcher.Scorer). Not thread-safe: one thread calls `score`."""

    def __init__(self, model: Any, metrics: Metrics, *, prompt_cache_bytes: int = 0) -> None:
        self._model = model
        self._metrics = metrics
        config = model.config.get_text_config()
        self._pad_id = config.pad_token_id or 0  # any id will do: it is masked
        head = getattr(model, "score", None)
        self._head = head.float() if isinstance(head, torch.nn.Linear) else None
        self._reads_alone = depends_on_batch(config)
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.labels: list[str] = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        if getattr(config, "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # the others of transformers leave the cap out
        packed = self._try_packing()
        self._packed = None if isinstance(packed, str) else packed
        self.why_not_packed = packed if isinstance(packed, str) else None
        """None where batches are packed; else the reason, in words."""
        if self._packed is not None:
            self._packed.cache = PromptCache(prompt_cache_bytes, metrics)  # without what was tried

    def score(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """Token ids, one non-empty list per row -> float32 logits, rows x labels."""
        packed = self._packed
        logits, num_tokens = self._score_packed(packed, batch) if packed else self._score_padded(batch)
        self._metrics.computed_tokens.inc(num_tokens)
        return logits

    @torch.inference_mode()
    def _score_packed(
        self, packed: PackedModel, batch: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], int]:
        assert self._head is not None
        last_BD, num_tokens = packed.last_states(batch)
        return self._head(last_BD.float()).tolist(), num_tokens

    @torch.inference_mode()
    def _score_padded(self, batch: Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        if self._reads_alone and len(batch) > 1:
            return [self._score_padded([ids])[0][0] for ids in batch], sum(map(len, batch))
        lengths_B = torch.tensor([len(ids) for ids in batch])
        longest = int(lengths_B.max())
        ids_BT = torch.tensor([[*ids, *[self._pad_id] * (longest - len(ids))] for ids in batch])
        mask_BT = (torch.arange(longest) < lengths_B[:, None]).long()
        device = self._model.device
        logits_BL = self._logits(ids_BT.to(device), mask_BT.to(device), lengths_B.to(device))
        return logits_BL.float().tolist(), ids_BT.numel()

    def _logits(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self._head is None:  # an encoder, whose own head reads its first token
            logits: torch.Tensor = self._model(ids_BT, attention_mask=mask_BT).logits
            return logits
        hidden_BTD = self._backbone(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        last_BD = hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), lengths_B - 1]
        scores_BL: torch.Tensor = self._head(last_BD.float())
        return scores_BL

    @property
    def _backbone(self) -> Any:
        return getattr(self._model, self._model.base_model_prefix)

    def _try_packing(self) -> PackedModel | str:
        """Replaces attention and linear layers, if rows then score as texts alone do; else says why not."""
        reason = why_not_packable(self._model.config.get_text_config())
        if reason or self._head is None:
            return reason or "its head is no linear layer on the last token"
        attention = self._model.config._attn_implementation
        batches = _probes(self.vocab_size, self.max_length)
        expected = torch.tensor([self._score_padded([ids])[0][0] for batch in batches for ids in batch])
        try:
            self._model.set_attn_implementation(NAME)
            prepare(self._backbone)
            packed = PackedModel(self._backbone, PromptCache(PROBE_CACHE_BYTES, Metrics()))
            scores = torch.tensor([row for batch in batches for row in self._score_packed(packed, batch)[0]])
            if _agree(scores, expected, self._model.dtype):
                return packed
            reason = "scores would differ from those of texts alone"
        # whatever a model raises that was not written to have its attention replaced
        except (NotPackableError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
        restore(self._backbone)
        self._model.set_attn_implementation(attention)
        return reason


def _probes(vocab_size: int, max_length: int | None) -> list[list[TextIds]]:
    """Batches of random tokens: texts that share a beginning and one that does not; then texts that share it
    with what the cache has kept of the first batch."""
    length = min(PROBE_TOKENS, (max_length or 3 * PROBE_TOKENS) // 3)
    generator = torch.Generator().manual_seed(0)
    prompt, other, *answers = torch.randint(vocab_size, (6, max(1, length)), generator=generator).tolist()

    def texts(*parts: list[int]) -> list[TextIds]:
        found = [TextIds(ids) for ids in parts]
        for ids in found:
            ids.prompt_length = length
        return found

    return [
        texts(prompt + answers[0], prompt + answers[1][:5], prompt + answers[1] + answers[2], other),
        texts(prompt + answers[3], prompt + other[:1], other + answers[0]),
    ]


def _agree(scores: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways to compute the same may both be served."""
    error = scores - expected
    if dtype == torch.float32:
        return bool(error.abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())))
    return bool(error.square().mean().sqrt() <= LOW_PRECISION_TOLERANCE * expected.std())


def load_model(
    checkpoint: Checkpoint, dtype: DType, device: str, metrics: Metrics, *, prompt_cache_bytes: int = 0
) -> RewardModel:
    """Builds the model; refuses missing, misshapen, unknown head or non-finite weights. Raises StartError."""

    def build() -> tuple[Any, dict[str, Any]]:
        built: tuple[Any, dict[str, Any]] = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, dtype),
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
    model = _translated(checkpoint, f"cannot run on {device}", lambda: model.eval().to(device))
    served = RewardModel(model, metrics, prompt_cache_bytes=prompt_cache_bytes)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what loading took beside the weights
    return served


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
