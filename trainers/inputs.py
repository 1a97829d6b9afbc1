"""What a run starts from: its parent checkpoint, tokenizer and data, read the same way by all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trainers import checkpoint, models
from trainers.chat import ChatEncoder
from trainers.checkpoint import Parent
from trainers.config import TrainingConfig
from trainers.data import Sized, keep_usable
from trainers.formats import Source
from trainers.run import Run

RowT = TypeVar("RowT")
ExampleT = TypeVar("ExampleT", bound=Sized)


@dataclass(frozen=True, slots=True)
class Inputs(Generic[ExampleT]):
    """A parent, and the data in its tokens."""

    parent: Parent
    tokenizer: Any
    encoder: ChatEncoder
    examples: list[ExampleT]
    num_rows: int
    """Rows read, of which `examples` are those kept."""
    held_out: list[ExampleT]
    num_held_out_rows: int
    max_length: int
    attention: str


def load_inputs(
    run: Run,
    config: TrainingConfig,
    read: Callable[[str], tuple[list[RowT], list[Source]]],
    tokenize: Callable[[Sequence[RowT], ChatEncoder], list[ExampleT]],
) -> Inputs[ExampleT]:
    """Finds the parent, reads and tokenises the data, and tells the run (and the user) about both."""
    rows, sources = read(config.dataset_name)
    held_out_rows, held_out_sources = read(config.eval_dataset_name) if config.eval_dataset_name else ([], [])
    parent = checkpoint.find(config.model_name_or_path)
    tokenizer, notes = models.load_tokenizer(parent, config.chat_template_path)
    run.describe(tokenizer, parent, [*sources, *held_out_sources])
    encoder = ChatEncoder(tokenizer)
    max_length = min(config.max_length, models.context_length(parent) or config.max_length)
    examples, dropped = keep_usable(tokenize(rows, encoder), max_length)
    held_out: list[ExampleT] = []
    if held_out_rows:
        held_out, dropped_too = keep_usable(tokenize(held_out_rows, encoder), max_length)
        dropped += [f"held-out data: {note}" for note in dropped_too]
    for note in notes + dropped:
        run.say(note)
    lengths = [len(example) for example in examples]
    run.say(
        f"{len(examples)} examples of {sum(lengths) / len(lengths):.0f} tokens on average, on {run.devices}"
    )
    attention = models.choose_attention(config.attn_implementation, lengths, run.device, config.bf16)
    return Inputs(
        parent,
        tokenizer,
        encoder,
        examples,
        len(rows),
        held_out,
        len(held_out_rows),
        max_length,
        attention,
    )
