"""Opens a checkpoint folder, or refuses it with one clear line, before anything in it is used.

    checkpoint = open_checkpoint(locate("runs/demo/reward"))
    ...                           # its files are read, into memory
    checkpoint.check_unchanged()  # so that what was read is what was verified

A folder with a manifest.json (written last by our trainers, the SHA-256 of every file) is verified file by
file; a folder without one, as hubs have, is taken and said to be unverified. Weights come from safetensors
only: pickle files beside them are ignored, never opened, and a folder with nothing else is refused, as is
one that asks for code of its own. No torch here: what can be refused from the files alone is refused
before a model is built.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from rm_server.calibration import Calibration, read_calibration
from rm_server.errors import CheckpointError

VERSION_DIGITS = 12
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# What a loader may read although a manifest does not name it: such a file would go unverified.
LOADED_SUFFIXES = (".safetensors", ".jinja", ".model")
LOADED_NAMES = (
    "added_tokens.json",
    "alignment.json",
    "chat_template.json",
    "config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
COUNTS = re.compile(r"(^|_)(layers?|heads?|experts|labels)$")
MAX_POSITIONS = 2**26  # 64 Mi tokens: more than any model reads
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed every check that needs no model. `version` names these exact weights."""

    folder: Path
    version: str
    verified: bool
    config: Mapping[str, Any]
    num_weights: int
    reward_offset: float
    calibration: Calibration | None
    files: frozenset[tuple[str, int, int, int]]
    """Name, inode, size and time of change of every file, as they were before the checks."""

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file is another than the one that was verified."""
        if _fingerprint(self.folder) != self.files:
            raise CheckpointError(f"{self.folder}: its files changed while they were read: load it again")


def locate(source: str) -> Path:
    """The local folder of `source`, a path or a hub name; from a hub everything but pickles is fetched."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder")
    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # the hub's own errors are of these families
        raise CheckpointError(
            f"{source}: no such folder here, and the hub could not give it ({type(error).__name__})"
        ) from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """Checks files, configuration and weights' headers. Raises CheckpointError.

    Links are followed once, here: one that is set to another folder later does not mix two checkpoints.
    """
    folder = folder.resolve()
    files = _fingerprint(folder)
    if (folder / "adapter_config.json").is_file():
        # Of such a folder transformers would read the model that this file names, from wherever it is.
        raise CheckpointError(
            f"{folder}: holds an adapter (adapter_config.json): merge it into its model first"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a checkpoint: it has no config.json")
    weights = _weight_files(folder)
    manifest = _verify_manifest(folder)
    config = _read_json(folder / "config.json")
    _refuse_code(folder, config)
    _check_architecture(folder, config)
    shapes = _shapes(weights)
    _check_counts(folder, config, shapes)
    alignment = _alignment(folder)
    return Checkpoint(
        folder=folder,
        version=_version(folder, verified=manifest),
        verified=manifest,
        config=config,
        num_weights=sum(map(math.prod, shapes)),
        reward_offset=_reward_offset(folder, alignment),
        calibration=_calibration(folder, alignment),
        files=files,
    )


def _fingerprint(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    found = [(path.name, path.stat()) for path in folder.iterdir() if path.is_file()]
    return frozenset((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{folder}: no *.safetensors weights. Pickle checkpoints are not supported: convert them first"
        )
    return weights


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: missing, or not readable") from error


def _loaded_files(folder: Path) -> list[Path]:
    """What a loader may read."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in LOADED_SUFFIXES or file.name in LOADED_NAMES
    ]


def _verify_manifest(folder: Path) -> bool:
    """True after every file matched; False where there is no manifest."""
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    listed = _read_json(path).get("files")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f'{path}: holds no "files" with their SHA-256')
    for name, digest in listed.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise CheckpointError(f"{path}: names a file outside its folder")
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: does not match its SHA-256 in manifest.json")
    for file in _loaded_files(folder):
        if file.name not in listed:
            raise CheckpointError(f"{file}: would be loaded, but manifest.json does not list it")
    return True


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    tokenizer_config = folder / "tokenizer_config.json"
    settings = {"config.json": config}
    if tokenizer_config.is_file():
        settings["tokenizer_config.json"] = _read_json(tokenizer_config)
    for name, content in settings.items():
        for key in ("auto_map", "trust_remote_code"):
            if content.get(key):
                raise CheckpointError(
                    f"{folder / name}: asks for code of its own ({key}), which is never run"
                )


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or not name.endswith("ForSequenceClassification"):
        found = name if isinstance(name, str) else "no architecture"
        raise CheckpointError(
            f"{folder}: not a reward model: config.json says {found}, not ...ForSequenceClassification"
        )


def _shapes(weights: list[Path]) -> list[list[int]]:
    """Of every tensor, as the files' headers say."""
    shapes: list[list[int]] = []
    for path in weights:
        try:
            with safe_open(path, framework="numpy") as file:
                shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  # no dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file") from error
    return shapes


def _check_counts(folder: Path, config: Mapping[str, Any], shapes: list[list[int]]) -> None:
    """Refuses counts of layers, heads, labels or experts that no tensor shows: such a model would be built
    for ever, even without memory. What the other dimensions come to is seen when it is built."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    most = max([len(shapes), *(size for shape in shapes for size in shape)])
    for key, value in [item for part in (config, *nested) for item in part.items()]:
        if COUNTS.search(key) and isinstance(value, int) and value > most:
            raise CheckpointError(
                f"{folder}: config.json says {key} {value}, which its {len(shapes)} tensors do not hold"
            )
    layers = config.get("num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= len(shapes):
        raise CheckpointError(
            f"{folder}: config.json says num_hidden_layers {layers}, but there are {len(shapes)} tensors"
        )
    positions = config.get("max_position_embeddings", 1)
    if not isinstance(positions, int) or not 0 < positions <= MAX_POSITIONS:
        raise CheckpointError(f"{folder}: config.json says max_position_embeddings {positions}")


def _version(folder: Path, *, verified: bool) -> str:
    """A short digest of the manifest, which covers every file; without one, of all that is loaded."""
    if verified:
        return _sha256(folder / "manifest.json")[:VERSION_DIGITS]
    digests = "".join(file.name + _sha256(file) for file in _loaded_files(folder))
    return hashlib.sha256(digests.encode()).hexdigest()[:VERSION_DIGITS]


def _alignment(folder: Path) -> dict[str, Any]:
    """What our trainers say of a checkpoint; a model without alignment.json is taken as it is."""
    path = folder / "alignment.json"
    return _read_json(path) if path.is_file() else {}


def _reward_offset(folder: Path, alignment: Mapping[str, Any]) -> float:
    """What normalisation subtracts from a raw logit."""
    offset = alignment.get("reward_offset", 0.0)
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise CheckpointError(f"{folder / 'alignment.json'}: reward_offset is not a finite number")
    return float(offset)


def _calibration(folder: Path, alignment: Mapping[str, Any]) -> Calibration | None:
    """The distribution of its normalised rewards."""
    try:
        return read_calibration(alignment.get("calibration"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'alignment.json'}: calibration is {error}") from error
