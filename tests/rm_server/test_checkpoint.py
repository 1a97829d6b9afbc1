"""A checkpoint is verified, or said to be unverified; what is wrong with it ends in one clear line."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rm_server.checkpoint import locate, open_checkpoint
from rm_server.errors import CheckpointError
from tests.rm_server.tiny import change_json, seal


def test_a_sealed_folder_is_verified(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert checkpoint.verified
    assert checkpoint.reward_offset == 0.25
    manifest = hashlib.sha256((tiny_checkpoint / "manifest.json").read_bytes()).hexdigest()
    assert checkpoint.version == manifest[:12]


def test_a_folder_without_manifest_is_taken_as_unverified(loose_checkpoint: Path) -> None:
    before = open_checkpoint(loose_checkpoint)
    assert not before.verified
    assert before.reward_offset == 0.0
    weights = loose_checkpoint / "model.safetensors"
    weights.write_bytes(_flip(weights.read_bytes(), -1))
    assert open_checkpoint(loose_checkpoint).version != before.version  # other weights, another version


def test_pickles_beside_safetensors_are_never_opened(loose_checkpoint: Path) -> None:
    seal(loose_checkpoint)
    (loose_checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"score.weight": 1}))
    assert open_checkpoint(loose_checkpoint).verified


def _flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


def _flip_a_weight(folder: Path) -> None:
    path = seal(folder) / "model.safetensors"
    path.write_bytes(_flip(path.read_bytes(), -1))


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _lose_a_listed_file(folder: Path) -> None:
    (seal(folder) / "tokenizer.json").unlink()


def _add_an_unlisted_template(folder: Path) -> None:
    (seal(folder) / "chat_template.jinja").write_text("{{ messages }}")


def _list_a_file_outside(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"files": {"../outside.json": digest}}))


def _truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
        (_only_pickle, "Pickle checkpoints are not supported"),
        (_flip_a_weight, "model.safetensors: does not match its SHA-256"),
        (_lose_a_listed_file, "tokenizer.json: missing, or not readable"),
        (
            _add_an_unlisted_template,
            "chat_template.jinja: would be loaded, but manifest.json does not list it",
        ),
        (_list_a_file_outside, "names a file outside"),
        (lambda f: (f / "manifest.json").write_text("{}"), 'holds no "files"'),
        (lambda f: (f / "manifest.json").write_text("oops"), "manifest.json: not readable"),
        (_truncate_weights, "model.safetensors: not a readable safetensors file"),
        (lambda f: change_json(f / "config.json", auto_map={"AutoModel": "m.M"}), "auto_map"),
        (lambda f: change_json(f / "config.json", trust_remote_code=True), "trust_remote_code"),
        (
            lambda f: change_json(f / "tokenizer_config.json", auto_map={"a": "b"}),
            "tokenizer_config.json: asks",
        ),
        (lambda f: change_json(f / "config.json", architectures=["LlamaForCausalLM"]), "not a reward model"),
        (lambda f: change_json(f / "config.json", architectures=None), "says no architecture"),
        (lambda f: change_json(f / "config.json", num_hidden_layers=10**9), "num_hidden_layers 1000000000"),
        (lambda f: change_json(f / "config.json", num_hidden_layers="two"), "num_hidden_layers two"),
        (lambda f: (f / "alignment.json").write_text('{"reward_offset": "x"}'), "reward_offset"),
        (lambda f: (f / "alignment.json").write_text('{"reward_offset": NaN}'), "reward_offset"),
        (lambda f: (f / "alignment.json").write_text('{"reward_offset": true}'), "reward_offset"),
    ],
)
def test_refuses(loose_checkpoint: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(loose_checkpoint)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(loose_checkpoint)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_flipped_byte_of_a_sealed_folder_is_found(loose_checkpoint: Path, tmp_path: Path) -> None:
    seal(loose_checkpoint)
    for name in sorted(json.loads((loose_checkpoint / "manifest.json").read_text())["files"]):
        content = (loose_checkpoint / name).read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            copy = tmp_path / "copy"
            shutil.copytree(loose_checkpoint, copy)
            (copy / name).write_bytes(_flip(content, position))
            with pytest.raises(CheckpointError):
                open_checkpoint(copy)
            shutil.rmtree(copy)


def test_a_folder_is_its_own_location(tiny_checkpoint: Path) -> None:
    assert locate(str(tiny_checkpoint)) == tiny_checkpoint


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such", "nothing", "a/b/c"])
def test_a_missing_folder_is_no_hub_name(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(source)
