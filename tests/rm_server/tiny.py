"""A tiny random-weights reward model with a tokenizer of its own, as a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

CONTROL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'tool' -%}{{ raise_exception('no: ' + message['content']) }}{%- endif -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
)
TRIMMING_TEMPLATE = TEMPLATE.replace(
    "message['content'] + '<|end|>'", "message['content'] | trim + '<|end|>'"
)
CORPUS = [
    "How many apples are in the basket?",
    "There are 12 apples, I think.",
    "Please say hello to the user.",
]
MAX_LENGTH = 96


def tiny_tokenizer(template: str = TEMPLATE) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=CONTROL[2:],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(num_labels: int = 1, **changes: Any) -> Any:
    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.2,  # wide, so that scores differ visibly
        "num_labels": num_labels,
        **changes,
    }
    return LlamaForSequenceClassification(LlamaConfig(**settings)).eval()


def save_checkpoint(
    folder: Path, model: Any = None, *, template: str = TEMPLATE, alignment: dict[str, Any] | None = None
) -> Path:
    """Writes a folder without a manifest; `seal` adds one."""
    (tiny_model() if model is None else model).save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder, save_jinja_files=False)
    if alignment is not None:
        (folder / "alignment.json").write_text(json.dumps(alignment))
    return folder


def seal(folder: Path) -> Path:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"files": digests}))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
