"""Absurd configurations are refused before they cost anything, and weights are nobody else's."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from rm_server.checkpoint import open_checkpoint
from rm_server.errors import CheckpointError
from rm_server.metrics import Metrics
from rm_server.reward_model import load_model
from tests.rm_server.tiny import change_json, save_checkpoint, tiny_model


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("value", [10**5, 10**9, 10**15, 2**63, 0, -1, 0.5, "many", [64]])
@pytest.mark.parametrize(
    "dimension",
    [
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ],
)
def test_an_absurd_dimension_is_refused_before_it_costs_memory(
    loose_checkpoint: Path, dimension: str, value: Any
) -> None:
    change_json(loose_checkpoint / "config.json", **{dimension: value})
    before = peak_bytes()
    with pytest.raises(CheckpointError):
        load_model(open_checkpoint(loose_checkpoint), "float32", "cpu", Metrics())
    assert peak_bytes() - before < 2**28


@pytest.mark.parametrize("positions", [10**9, 2**63, 0, -1, 1.5, "many"])
def test_absurd_positions_are_refused(loose_checkpoint: Path, positions: Any) -> None:
    change_json(loose_checkpoint / "config.json", max_position_embeddings=positions)
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        open_checkpoint(loose_checkpoint)


def test_absurd_labels_are_refused(loose_checkpoint: Path) -> None:
    change_json(loose_checkpoint / "config.json", num_labels=10**9)
    with pytest.raises(CheckpointError, match="num_labels 1000000000"):
        open_checkpoint(loose_checkpoint)


def test_learnt_positions_count(tmp_path: Path) -> None:
    """Where positions are a table, the table is in the files or not."""
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=32, n_positions=64, vocab_size=320, num_labels=1, pad_token_id=0
    )
    folder = save_checkpoint(tmp_path / "gpt2", GPT2ForSequenceClassification(config))
    load_model(open_checkpoint(folder), "float32", "cpu", Metrics())
    change_json(folder / "config.json", n_positions=10**7)
    with pytest.raises(CheckpointError, match=r"describes \d+ weights, but the files hold \d+"):
        load_model(open_checkpoint(folder), "float32", "cpu", Metrics())


def test_writing_over_the_file_does_not_change_what_is_served(loose_checkpoint: Path) -> None:
    model = load_model(open_checkpoint(loose_checkpoint), "float32", "cpu", Metrics())
    before = model.score([[5, 6, 7]])
    weights = loose_checkpoint / "model.safetensors"
    with weights.open("r+b") as file:  # the same file, as cp does it
        file.write(b"\0" * weights.stat().st_size)
    assert model.score([[5, 6, 7]]) == before


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(loose_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(loose_checkpoint)
    checkpoint.check_unchanged()
    other = tiny_model()
    torch.nn.init.ones_(other.score.weight)
    other.save_pretrained(loose_checkpoint)
    with pytest.raises(CheckpointError, match="changed while they were read"):
        checkpoint.check_unchanged()


def test_a_link_is_followed_once(loose_checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(loose_checkpoint)
    checkpoint = open_checkpoint(link)
    assert checkpoint.folder == loose_checkpoint.resolve()
