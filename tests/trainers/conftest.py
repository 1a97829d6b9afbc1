"""A tokenizer and a model small enough to train in a test, and rows for them to learn."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from trainers import checkpoint

torch.set_num_threads(1)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
MODEL_SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
"""Of any architecture; its weights are large, so that nothing is near zero."""
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def make_tokenizer() -> Any:
    """Bytes as tokens, after five control tokens: what a test writes it can count."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHATML,
    )
    tokenizer.model_max_length = 128
    return tokenizer


def make_model(seed: int = 0, vocab_size: int = 261, context: int = 128, **settings: Any) -> Any:
    """A Llama of some 30,000 parameters; its random weights are large, so that nothing is near zero."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def save_reward_model(folder: Path) -> Path:
    """Saves a reward model of random weights, its rewards 0.25 off their mean."""
    config = make_model().config
    config.num_labels = 1
    torch.manual_seed(1)
    model: Any = LlamaForSequenceClassification(config).eval()
    checkpoint.save(model, make_tokenizer(), folder, {"algorithm": "test", "reward_offset": 0.25})
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A checkpoint folder of the tiny model, with its manifest."""
    folder = tmp_path_factory.mktemp("models") / "base"
    checkpoint.save(make_model(), tokenizer, folder, {"algorithm": "test"})
    return folder


@pytest.fixture(scope="session")
def reward_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the same size."""
    return save_reward_model(tmp_path_factory.mktemp("models") / "reward")


@pytest.fixture
def model() -> Any:
    return make_model()


WriteRows = Callable[[str, Sequence[dict[str, Any]]], Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows to a .jsonl file and returns its path."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def demonstrations(write_rows: WriteRows) -> Path:
    """Twenty questions of different lengths, each answered by its number."""
    return write_rows("demonstrations.jsonl", [chat(f"What is {'x' * n}?", f"{n}.") for n in range(20)])


@pytest.fixture
def prompts(write_rows: WriteRows) -> Path:
    """Ten prompts of different lengths."""
    return write_rows("prompts.jsonl", [{"prompt": f"Say {'x' * n}"} for n in range(10)])


@pytest.fixture
def pairs(write_rows: WriteRows) -> Path:
    """Twenty pairs: the answer `yes` beats any run of noes."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Is {n} a number?"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no " * (1 + n % 3)}],
        }
        for n in range(20)
    ]
    return write_rows("pairs.jsonl", rows)


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row with one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
