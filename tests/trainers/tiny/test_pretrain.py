"""Pre-training: blocks by hand, settings that cannot be, and a few real steps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.conftest import WriteRows
from trainers import checkpoint
from trainers.__main__ import main
from trainers.errors import ConfigError, DataError
from trainers.tiny.base_model import new_model
from trainers.tiny.pretrain import MIN_HEAD_SIZE, Config, packed, text_of
from trainers.tiny.tokenizer import CONTROL, train_tokenizer

torch.set_num_threads(1)

documents = st.lists(st.lists(st.integers(5, 99), max_size=20), max_size=20)
SMALL = ["--hidden_size", "32", "--intermediate_size", "48", "--num_hidden_layers", "1"]
SMALL += ["--num_attention_heads", "1", "--vocab_size", "300", "--max_length", "64", "--block_length", "32"]


def test_documents_are_packed_by_hand() -> None:
    """1 2 END 3 END 4 5 6 END in blocks of 4: the last END is left out."""
    assert list(packed([[1, 2], [3], [4, 5, 6]], 0, 4)) == [[1, 2, 0, 3], [0, 4, 5, 6]]
    assert list(packed([[1, 2]], 0, 4)) == []
    assert list(packed([[1, 2, 3]], 0, 4)) == [[1, 2, 3, 0]]


@given(documents, st.integers(2, 9))
def test_packing_keeps_every_token_in_order(rows: Sequence[Sequence[int]], length: int) -> None:
    stream = [token for row in rows for token in (*row, 0)]
    blocks = list(packed(rows, 0, length))
    joined = [token for block in blocks for token in block]
    assert all(len(block) == length for block in blocks)
    assert joined == stream[: len(joined)]
    assert len(stream) - len(joined) < length


@pytest.mark.parametrize("row", [{}, {"text": ""}, {"text": 3}, {"text": None}, {"messages": []}])
def test_a_row_without_text_is_named(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"corpus.jsonl, line 3: `text` must be"):
        text_of(row, "corpus.jsonl, line 3")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 256, "num_attention_heads": 16}, f"head size of {MIN_HEAD_SIZE}"),  # heads of 16
        ({"hidden_size": 100, "num_attention_heads": 3}, "head size"),
        ({"block_length": 512}, "at most --max_length"),
        ({"block_length": 1}, "at least 2"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_attention_heads": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(output_dir="out", dataset_name="corpus.jsonl", **settings)


def test_the_recipes_model_has_the_promised_size() -> None:
    """2 to 6 million parameters, heads of 32 or more, embeddings tied, no begin token, a pad of its own."""
    config = Config(output_dir="out", dataset_name="corpus.jsonl")
    tokenizer = train_tokenizer(["a b c"] * 3, 262, config.max_length)
    model = new_model(
        tokenizer,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.max_length,
        attention="eager",
    )
    embeddings = (config.vocab_size - len(tokenizer)) * config.hidden_size  # of the full vocabulary
    assert 2e6 <= model.num_parameters() + embeddings <= 6e6
    assert config.hidden_size // config.num_attention_heads >= MIN_HEAD_SIZE
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.bos_token_id is None
    assert model.config.pad_token_id != model.config.eos_token_id == tokenizer.eos_token_id
    matrices = [weights for weights in model.parameters() if weights.ndim == 2]
    spreads = [float(weights.detach().std()) * config.hidden_size**0.5 for weights in matrices]
    assert spreads == pytest.approx([1.0] * len(matrices), rel=0.05)  # what goes through keeps its size


def train(corpus: Path, output: Path, *more: str) -> int:
    return main(["pretrain", "--dataset_name", str(corpus), "--output_dir", str(output), *SMALL, *more])


@pytest.fixture
def corpus(write_rows: WriteRows) -> Path:
    return write_rows(
        "corpus.jsonl", [{"text": f"Count from {n} to {n + 1}: {n}, {n + 1}."} for n in range(60)]
    )


def test_it_learns_and_leaves_a_verified_checkpoint(corpus: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", "30", "--logging_steps", "1", "--learning_rate", "1e-2"]
    assert train(corpus, tmp_path / "base", *steps) == 0
    assert checkpoint.verify(tmp_path / "base")
    lines = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 5  # log 300 is 5.7
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    alignment = checkpoint.read_json(tmp_path / "base" / "alignment.json")
    assert (alignment["algorithm"], alignment["parent"]) == ("pretrain", None)
    assert alignment["data"][0]["rows"] == 60
    vocabulary = checkpoint.read_json(tmp_path / "base" / "tokenizer.json")["added_tokens"]
    assert [token["content"] for token in vocabulary] == CONTROL


def test_the_seed_decides(corpus: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        assert train(corpus, tmp_path / name, "--max_steps", "3", "--seed", str(seed)) == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n', "too short for one block of 32 tokens"),
        ('{"text": "a"}\n{"text": ""}\n', "corpus.jsonl, line 2: `text` must be"),
        ('{"text": "a"}\n{"text"\n', "line 2"),
    ],
)
def test_bad_data_is_one_line_and_code_3(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text(content)
    assert train(tmp_path / "corpus.jsonl", tmp_path / "out") == 3
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()
