"""A score is what a plain transformers forward gives for that text alone, whatever shares its batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from rm_server.checkpoint import open_checkpoint
from rm_server.errors import CheckpointError
from rm_server.metrics import Metrics
from rm_server.reward_model import RewardModel, load_model, load_tokenizer
from tests.rm_server.tiny import MAX_LENGTH, change_json, save_checkpoint, tiny_model

TOLERANCE = 1e-5  # of max(1, |score|), in float32
BFLOAT16_TOLERANCE = 0.1  # root mean square, of the scores' standard deviation

rows = st.lists(st.lists(st.integers(1, 319), min_size=1, max_size=MAX_LENGTH), min_size=1, max_size=12)


@cache
def shared_model() -> Any:
    return tiny_model()


@cache
def served() -> RewardModel:
    """The same weights, served."""
    return RewardModel(tiny_model(), Metrics())


def alone(model: Any, ids: list[int]) -> list[float]:
    """The plain forward of one unpadded row, its last position."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        logits: list[float] = model.score(hidden)[0, -1].tolist()
    return logits


def assert_close(ours: list[list[float]], theirs: list[list[float]], tolerance: float) -> None:
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert len(our_row) == len(their_row)
        for our, their in zip(our_row, their_row, strict=True):
            assert abs(our - their) <= tolerance * max(1, abs(their))


@settings(deadline=None, max_examples=40)
@given(rows)
def test_batched_equals_alone(batch: list[list[int]]) -> None:
    assert_close(served().score(batch), [alone(shared_model(), ids) for ids in batch], TOLERANCE)


def test_alone_is_what_transformers_itself_answers() -> None:
    ids = [3, 14, 15, 92, 65]
    with torch.no_grad():
        theirs = shared_model()(torch.tensor([ids])).logits.tolist()
    assert_close(served().score([ids]), theirs, TOLERANCE)


def test_a_text_may_end_in_the_pad_token() -> None:
    batch = [[5, 6, 0, 0], [5, 6], [9] * 7]
    expected = [alone(shared_model(), ids) for ids in batch]
    assert abs(expected[0][0] - expected[1][0]) > 0.01  # or this could not fail
    assert_close(served().score(batch), expected, TOLERANCE)


def test_a_model_without_pad_token_takes_batches() -> None:
    model = tiny_model(pad_token_id=None)
    batch = [[5, 6, 7], [8]]
    padless = RewardModel(tiny_model(pad_token_id=None), Metrics())
    assert_close(padless.score(batch), [alone(model, ids) for ids in batch], TOLERANCE)


def test_several_labels_come_in_their_order() -> None:
    model = tiny_model(num_labels=3)
    judge = RewardModel(tiny_model(num_labels=3), Metrics())
    batch = [[5, 6, 7], [8, 9]]
    assert judge.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert_close(judge.score(batch), [alone(model, ids) for ids in batch], TOLERANCE)


def test_an_encoder_with_a_head_of_its_own() -> None:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        num_labels=1,
    )
    model = BertForSequenceClassification(config).eval()
    batch = [[2, 3, 4, 5, 6, 7], [8, 9]]
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0].tolist() for ids in batch]
    assert_close(RewardModel(model, Metrics()).score(batch), expected, TOLERANCE)


def test_bfloat16_stays_near_float32(loose_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(loose_checkpoint)
    exact = load_model(checkpoint, "float32", "cpu", Metrics())
    short = load_model(checkpoint, "bfloat16", "cpu", Metrics())
    batch = [[i, 2 * i, 3 * i] for i in range(1, 100)]
    expected = torch.tensor(exact.score(batch))
    error = torch.tensor(short.score(batch)) - expected
    assert 0 < error.square().mean().sqrt() <= BFLOAT16_TOLERANCE * expected.std()


def test_loads_what_was_saved(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    judge = load_model(checkpoint, "float32", "cpu", Metrics())
    assert judge.max_length == MAX_LENGTH
    assert judge.vocab_size == 320
    assert_close(judge.score([[5, 6, 7]]), [alone(shared_model(), [5, 6, 7])], TOLERANCE)
    assert load_tokenizer(checkpoint).pad_token == "<|pad|>"


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def _a_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.bias"] = torch.ones(1)


def _a_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = float("nan")


def _an_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"][0, 0] = float("inf")


def _a_narrow_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"] = tensors["score.weight"][:, :32].clone()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_tensors(lambda t: t.pop("score.weight")), "lacks score.weight"),
        (with_tensors(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), "lacks model.layers.1.mlp"),
        (with_tensors(_a_bias), "cannot use, score.bias"),
        (with_tensors(_a_nan), "model.norm.weight holds NaN or infinite weights"),
        (with_tensors(_an_infinity), "score.weight holds NaN or infinite weights"),
        (with_tensors(_a_narrow_head), "its weights do not make a model"),
        (lambda f: change_json(f / "config.json", hidden_size=128), "its weights do not make a model"),
        (
            lambda f: change_json(f / "config.json", num_attention_heads=0),
            "its config.json does not make a model",
        ),
        (
            lambda f: change_json(f / "config.json", model_type="no-such"),
            "its config.json does not make a model",
        ),
    ],
)
def test_refuses_weights_that_are_not_the_model(
    loose_checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(loose_checkpoint)
    with pytest.raises(CheckpointError) as refused:
        load_model(open_checkpoint(loose_checkpoint), "float32", "cpu", Metrics())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_tensors_too_many_do_no_harm(loose_checkpoint: Path) -> None:
    with_tensors(lambda t: t.update({"lm_head.weight": torch.zeros(2, 2)}))(loose_checkpoint)
    judge = load_model(open_checkpoint(loose_checkpoint), "float32", "cpu", Metrics())
    assert_close(judge.score([[5]]), [alone(shared_model(), [5])], TOLERANCE)


def test_refuses_a_tokenizer_without_template(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "silent", template="")
    with pytest.raises(CheckpointError, match="no chat template"):
        load_tokenizer(open_checkpoint(folder))


def test_refuses_a_broken_tokenizer(loose_checkpoint: Path) -> None:
    (loose_checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load_tokenizer(open_checkpoint(loose_checkpoint))
