"""Trains the small world's base model from scratch: its tokenizer, then a Llama of 2 to 6 million parameters.

    python -m trainers pretrain --dataset_name DIR/corpus.jsonl --output_dir DIR/base

Documents, each ended by the end token, are joined and cut into blocks of equal length. The
result is a base model: it continues text, and knows nothing of the chat template that its tokenizer carries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

from trainers.config import RunConfig, parse
from trainers.errors import ConfigError, DataError

MIN_HEAD_SIZE = 32
"""vLLM's attention on the CPU takes no smaller heads."""


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Settings of pre-training; the defaults are the small world's recipe."""

    dataset_name: str
    """The corpus: a .jsonl file with a column `text`."""
    vocab_size: int = 1200
    """Entries of the BPE tokenizer, control tokens and the 256 bytes included."""
    hidden_size: int = 256
    """Width of the model."""
    intermediate_size: int = 512
    """Width of the feed-forward layers."""
    num_hidden_layers: int = 4
    """Layers."""
    num_attention_heads: int = 8
    """Attention heads; each must be 32 wide or more for vLLM on a CPU."""
    max_length: int = 256
    """Longest context of the model, in tokens."""
    block_length: int = 128
    """Tokens of one training row."""
    learning_rate: float = 2.5e-3
    """Peak learning rate, after warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls to 0 after warm-up (`constant` keeps it)."""
    warmup_ratio: float = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay, on matrices only (not on norms and biases)."""
    adam_beta2: float = 0.95
    """AdamW: decay of the mean of the squares of the gradients."""
    per_device_train_batch_size: int = 16
    """Blocks in one forward pass: few, for many steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("vocab_size", "block_length"), lambda value: value >= 2, "at least 2")
        self._check(("block_length",), lambda value: value <= self.max_length, "at most --max_length")
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        self._check(sizes, lambda value: value >= 1, "at least 1")
        head_size, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest or head_size < MIN_HEAD_SIZE:
            raise ConfigError(
                f"--hidden_size {self.hidden_size} must be --num_attention_heads {self.num_attention_heads} "
                f"times a head size of {MIN_HEAD_SIZE} or more"
            )


def main(argv: Sequence[str]) -> int:
    """Trains by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "pretrain", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import data, formats, losses, models
    from trainers.logprobs import token_logprobs
    from trainers.loop import Loss, train
    from trainers.run import start
    from trainers.tiny.base_model import new_model
    from trainers.tiny.tokenizer import train_tokenizer

    with start(config, "pretrain") as run:
        rows, sources = formats.read_rows(config.dataset_name)
        texts = [text_of(row, where) for row, where in rows]
        tokenizer = train_tokenizer(texts, config.vocab_size, config.max_length)
        run.describe(tokenizer, None, sources)
        blocks = [
            data.Tokens(block, list(range(1, len(block))))
            for block in packed(tokenizer(texts)["input_ids"], tokenizer.eos_token_id, config.block_length)
        ]
        if not blocks:
            raise DataError(f"{config.dataset_name}: too short for one block of {config.block_length} tokens")
        model = new_model(
            tokenizer,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_length=config.max_length,
            attention=models.choose_attention("auto", [config.block_length], run.device, config.bf16),
        )
        models.prepare(model)
        run.say(
            f"{len(texts)} documents in {len(blocks)} blocks, {model.num_parameters() / 1e6:.2f} M parameters"
        )

        def loss_fn(batch: data.CausalBatch) -> Loss:
            return Loss(losses.sft_nll(token_logprobs(model, batch)), batch.num_tokens)

        collate = partial(data.collate_tokens, pad_token_id=tokenizer.pad_token_id)
        batches = data.Batches(blocks, collate, config.per_device_train_batch_size, config.seed)
        run.finish(model, train(run, model, batches, loss_fn))
    return 0


def packed(documents: Sequence[Sequence[int]], end: int, length: int) -> Iterator[list[int]]:
    """The documents, each with the end token after it, as blocks of `length`; the remainder is left out."""
    stream = list(chain.from_iterable([*document, end] for document in documents))
    for at in range(0, len(stream) - length + 1, length):
        yield stream[at : at + length]


def text_of(row: dict[str, object], where: str) -> str:
    """The text of a corpus row. Raises DataError where there is none."""
    text = row.get("text")
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: `text` must be a string that is not empty")
    return text
