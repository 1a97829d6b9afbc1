"""Loading: what is repaired (pad token, template, head) and what is refused."""

import json
import math
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from tests.trainers.conftest import make_model, make_tokenizer
from trainers import checkpoint, models
from trainers.data import Tokens, collate_rewards
from trainers.errors import CheckpointError

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save(folder: Path, model: Any, tokenizer: Any) -> checkpoint.Parent:
    checkpoint.save(model, tokenizer, folder, {})
    return checkpoint.find(str(folder))


def tokenizer_without_pad() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<|end|>"
    return tokenizer


def test_a_pad_token_of_its_own_is_left_alone(base: Path) -> None:
    tokenizer, notes = models.load_tokenizer(checkpoint.find(str(base)), None)
    assert (tokenizer.pad_token, notes) == ("<|pad|>", [])


def test_a_pad_token_that_ends_answers_is_replaced_by_one_of_the_vocabulary(tmp_path: Path) -> None:
    parent = save(tmp_path / "m", make_model(), tokenizer_without_pad())
    tokenizer, notes = models.load_tokenizer(parent, None)
    assert tokenizer.pad_token_id == 0
    assert notes == ["pad token: <|pad|> (id 0), because it must not be an end token"]


def test_an_unused_row_of_the_embedding_becomes_the_pad_token(tmp_path: Path) -> None:
    parent = save(tmp_path / "m", make_model(vocab_size=264), tokenizer_without_pad())
    edit_json(parent.folder / "generation_config.json", eos_token_id=[1, 0])
    tokenizer, _ = models.load_tokenizer(parent, None)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<pad>", 261, 262)


def test_no_id_to_spare_is_an_error(tmp_path: Path) -> None:
    parent = save(tmp_path / "m", make_model(), tokenizer_without_pad())
    edit_json(parent.folder / "generation_config.json", eos_token_id=[1, 0])
    with pytest.raises(CheckpointError, match="no unused id"):
        models.load_tokenizer(parent, None)


def test_a_placeholder_template_is_taken_off_and_said(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    parent = save(tmp_path / "m", make_model(), tokenizer)
    loaded, notes = models.load_tokenizer(parent, None)
    assert loaded.chat_template is None
    assert notes == ["the tokenizer has no chat template that tells roles apart"]
    assert "Human" in models.load_tokenizer(parent, "simple")[0].chat_template


def test_a_policy_knows_its_end_and_pad_tokens(base: Path, tokenizer: Any) -> None:
    policy = models.load_policy(checkpoint.find(str(base)), tokenizer, "eager")
    models.add_end_tokens(policy, {1, 4})
    assert policy.generation_config.eos_token_id == [1, 4]
    assert policy.generation_config.pad_token_id == 0
    assert not policy.training


def test_a_frozen_copy_does_not_follow(model: Any) -> None:
    reference = models.freeze(model)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert not torch.equal(reference.lm_head.weight, model.lm_head.weight)


def test_a_new_reward_head(base: Path, tokenizer: Any) -> None:
    parent = checkpoint.find(str(base))
    one, same, other = (models.load_reward_model(parent, tokenizer, "eager", seed) for seed in (0, 0, 1))
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    # 32 draws of deviation 1/sqrt(33): their sample deviation lies within a third of it.
    assert float(one.score.weight.detach().std()) == pytest.approx(1 / math.sqrt(33), rel=0.34)
    assert "score.bias" not in one.state_dict()


def test_a_trained_reward_head_is_kept(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    first = models.load_reward_model(checkpoint.find(str(base)), tokenizer, "eager", 0)
    parent = save(tmp_path / "rm", first, tokenizer)
    again = models.load_reward_model(parent, tokenizer, "eager", seed=5)
    assert torch.equal(first.score.weight, again.score.weight)
    with pytest.raises(CheckpointError, match=r"not a full checkpoint for this: lm_head\.weight is missing"):
        models.load_policy(parent, tokenizer, "eager")


def test_rewards_equal_those_of_transformers_alone_and_padded(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = models.load_reward_model(checkpoint.find(str(base)), tokenizer, "eager", 0)
    save(tmp_path / "rm", model, tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    rows = [[5, 6, 7, 1], [9, 8, 1], [20] * 30 + [1]]
    with torch.no_grad():
        ours_B = models.rewards(model, collate_rewards([Tokens(row, []) for row in rows], 0))
        alone = [theirs(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert ours_B.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_model_that_is_no_checkpoint_for_this_is_one_line(base: Path, tmp_path: Path) -> None:
    copy = copytree(base, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    edit_json(copy / "config.json", model_type="nonsense")
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        models.load_policy(checkpoint.find(str(copy)), make_tokenizer(), "eager")
    assert "\n" not in str(caught.value)


def test_damaged_weights_without_a_manifest_are_one_line(base: Path, tmp_path: Path) -> None:
    copy = copytree(base, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        models.load_policy(checkpoint.find(str(copy)), make_tokenizer(), "eager")


def test_weights_of_another_shape_are_refused(base: Path, tmp_path: Path) -> None:
    copy = copytree(base, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    edit_json(copy / "config.json", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"another shape|cannot be loaded"):
        models.load_policy(checkpoint.find(str(copy)), make_tokenizer(), "eager")


STRANGERS = {
    "changes its logits": GraniteForCausalLM(
        GraniteConfig(**SIZES, vocab_size=261, intermediate_size=48, logits_scaling=2.0)
    ),
    "not a causal model": BertLMHeadModel(BertConfig(**SIZES, vocab_size=261, intermediate_size=48)),
}


@pytest.mark.parametrize("reason", STRANGERS)
def test_architectures_that_break_a_promise_are_refused(reason: str, tmp_path: Path) -> None:
    parent = save(tmp_path / "m", STRANGERS[reason].eval(), make_tokenizer())
    with pytest.raises(CheckpointError, match=reason):
        models.load_policy(parent, make_tokenizer(), "eager")


@pytest.mark.parametrize(
    ("requested", "length", "device", "bf16", "attention"),
    [
        ("auto", 36, "cpu", True, "eager"),
        ("auto", 512, "cpu", True, "sdpa"),
        ("auto", 36, "cpu", False, "sdpa"),
        ("auto", 36, "cuda", True, "sdpa"),
        ("sdpa", 36, "cpu", True, "sdpa"),
        ("eager", 999, "cpu", False, "eager"),
    ],
)
def test_attention_suits_device_precision_and_length(
    requested: str, length: int, device: str, bf16: bool, attention: str
) -> None:
    lengths = [length] * 10 + [9]
    assert models.choose_attention(requested, lengths, torch.device(device), bf16) == attention


def test_context_length(base: Path) -> None:
    assert models.context_length(checkpoint.find(str(base))) == 128


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    manifest = path.parent / "manifest.json"
    manifest.unlink(missing_ok=True)
