"""The checkpoint contract: whole or not at all, verified, and nothing that can run code."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainers.conftest import CHATML, make_model
from trainers import checkpoint
from trainers.errors import CheckpointError
from trainers.formats import sha256_of


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return copytree(base, tmp_path / "copy")


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_folder_holds_what_the_contract_names(base: Path) -> None:
    names = {path.name for path in base.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "alignment.json",
        "manifest.json",
    }
    files = json.loads((base / "manifest.json").read_text())["files"]
    assert files == {name: sha256_of(base / name) for name in names - {"manifest.json"}}
    assert json.loads((base / "tokenizer_config.json").read_text())["chat_template"] == CHATML
    assert checkpoint.verify(base) is True


def test_transformers_loads_it_unchanged(base: Path, model: Any) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(base)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_its_identity_is_that_of_its_manifest_or_weights(base: Path, copy: Path) -> None:
    found = checkpoint.find(str(base))
    assert (found.verified, found.sha256) == (True, sha256_of(base / "manifest.json"))
    (copy / "manifest.json").unlink()
    found = checkpoint.find(str(copy))
    assert (found.verified, found.sha256) == (False, sha256_of(copy / "model.safetensors"))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def only_a_pickle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flip_a_bit, "model.safetensors: damaged or changed"),
    "a missing file": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "only a pickle": (only_a_pickle, "pickle files .pytorch_model.bin., which can run code"),
    "no weights": (no_weights, "there is no .safetensors file"),
    "code of its own": (
        lambda f: edit_json(f / "config.json", auto_map={}),
        r"\(auto_map\), which is refused",
    ),
    "tokenizer code": (lambda f: edit_json(f / "tokenizer_config.json", auto_map={}), "auto_map"),
    "an added template": (
        lambda f: (f / "chat_template.jinja").write_text("x"),
        "the manifest does not name it",
    ),
    "a way out": (lambda f: edit_json(f / "manifest.json", files={"../x": ""}), "not the name of a file"),
    "no files": (lambda f: (f / "manifest.json").write_text("{}"), "has no `files`"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line(copy: Path, damage: str) -> None:
    do_it, reason = DAMAGES[damage]
    do_it(copy)
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.verify(copy)
    assert "\n" not in str(caught.value)


def test_a_pickle_beside_safetensors_is_ignored(copy: Path) -> None:
    (copy / "training_args.bin").write_bytes(b"pickle")
    assert checkpoint.verify(copy) is True


@pytest.mark.parametrize("name", ["", "./absent", "/absent", "a/b/c"])
def test_a_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint folder|config\.json is missing"):
        checkpoint.find(name)


class FailingModel:
    """Writes its weights and then finds the disk full."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_nothing(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(FailingModel(), tokenizer, tmp_path / "new", {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_checkpoint(copy: Path, tokenizer: Any) -> None:
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(FailingModel(), tokenizer, copy, {})
    assert checkpoint.verify(copy) is True


def test_saving_into_a_folder_vouches_for_all_that_lies_there(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    checkpoint.save(model, tokenizer, folder, {"seed": 1})
    checkpoint.save(model, tokenizer, folder, {"seed": 2})
    assert checkpoint.verify(folder) is True
    assert "metrics.jsonl" in json.loads((folder / "manifest.json").read_text())["files"]
    assert json.loads((folder / "alignment.json").read_text())["seed"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_parents_tied_weights_are_kept(tmp_path: Path, tokenizer: Any) -> None:
    checkpoint.save(make_model(tie_word_embeddings=True), tokenizer, tmp_path / "tied", {})
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_removing_makes_it_no_checkpoint_first(copy: Path) -> None:
    checkpoint.remove(copy)
    assert not os.path.exists(copy)


def test_removing_the_model_leaves_strangers_files(copy: Path) -> None:
    (copy / "notes.md").write_text("mine")
    checkpoint.remove_model_files(copy)
    assert [path.name for path in copy.iterdir()] == ["notes.md"]
    checkpoint.remove_model_files(copy)
