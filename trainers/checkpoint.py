"""The checkpoint contract: what a model folder holds, how it is written, how it is trusted.

A folder that vLLM and transformers load unchanged: config.json, generation_config.json, model.safetensors,
tokenizer files (the chat template inside tokenizer_config.json), alignment.json (how it came to be), and
manifest.json, written last, with the SHA-256 of every file beside it. An adapter has adapter_config.json and
adapter_model.safetensors, PEFT's format, in the place of config.json and weights. Files are written to a
staging folder, flushed to disk and renamed, so that a crash leaves the old state, the new one, or a folder
without either config, which nothing loads.

A folder with a manifest is verified before use; one without is taken and said to be unverified. Weights come
from safetensors only, and no code comes from a checkpoint.
"""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import CheckpointError
from trainers.formats import sha256_of

MANIFEST = "manifest.json"
ALIGNMENT = "alignment.json"
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What from_pretrained may read although a manifest does not name it: such a file would go unverified.
LOADED_SUFFIXES = (".safetensors", ".jinja", ".model")
LOADED_NAMES = ("added_tokens.json", "special_tokens_map.json", "chat_template.json", ADAPTER)
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class Parent:
    """The checkpoint that a run starts from."""

    name: str
    folder: Path
    verified: bool
    sha256: str


def find(name: str) -> Parent:
    """Finds a checkpoint by folder or hub name and checks that it may be used."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(name)
    if is_adapter(folder):
        raise CheckpointError(
            f"{name}: an adapter without its model: merge it first (a run of these trainers, continued with "
            "--resume_from_checkpoint --save_adapter false, ends merged)"
        )
    verified = verify(folder)
    return Parent(name, folder, verified, identity(folder))


def verify(folder: Path) -> bool:
    """Checks a checkpoint folder; returns whether a manifest vouched for every file."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    if not is_adapter(folder) and not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no checkpoint: config.json is missing")
    _refuse_code(folder)
    _refuse_pickles(folder)
    if not (folder / MANIFEST).is_file():
        return False
    _verify_manifest(folder)
    return True


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; CheckpointError where it holds a model as well.

    Of such a folder transformers would read the model that the adapter's config names, whatever lies beside.
    """
    if not (folder / ADAPTER).is_file():
        return False
    if (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: holds a model and an adapter ({ADAPTER}): remove one of them")
    return True


def identity(folder: Path) -> str:
    """One SHA-256 for a checkpoint: of its manifest, or of its weights where it has none."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return sha256_of(manifest)
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        return sha256_of(weights[0])
    return "+".join(sha256_of(file) for file in weights)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object in a form that people and diffs can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("torch", "transformers", "tokenizers", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}


# ---- writing -----------------------------------------------------------------------------------------------


def save(
    model: Any,
    tokenizer: Any,
    folder: Path,
    alignment: dict[str, Any],
    also: Callable[[Path], None] | None = None,
) -> None:
    """Writes a checkpoint so that it appears whole.

    A folder that does not exist appears by one rename. Into one that does (a run's output folder, with its
    metrics), the files are renamed one by one, the config and then the manifest last. `also` writes more
    files beside them.
    """
    staging = folder.parent / f".{folder.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        _write_model(model, tokenizer, staging)
        write_json(staging / ALIGNMENT, alignment)
        if also is not None:
            also(staging)
        if folder.is_dir():
            _publish_into(staging, folder)
        else:
            _seal(staging, _files(staging))
            os.rename(staging, folder)
            _flush(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a folder; a crash half-way leaves nothing that looks like a checkpoint."""
    _disown(folder)
    shutil.rmtree(folder)


def remove_model_files(folder: Path) -> None:
    """Removes what an earlier run left in an output folder: the files of its manifest."""
    if (folder / MANIFEST).is_file():
        names = _manifest_files(folder)
        _disown(folder)
        for name in names:
            (folder / name).unlink(missing_ok=True)


def _write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    # Here, because transformers takes seconds to import and only saving needs it.
    import transformers

    # Its bars of one shard would break into the run's own.
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if not (folder / "generation_config.json").is_file():
        transformers.GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file)
    if config.get("tokenizer_class") == "TokenizersBackend":
        # The name of transformers 5 for what every version knows by this one.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("backend", "is_local", "local_files_only"):
        config.pop(name, None)
    write_json(config_file, config)


def _publish_into(staging: Path, folder: Path) -> None:
    _disown(folder)
    _flush(folder)
    for file in _files(staging):
        _flush(file)
    written = sorted((file.name for file in _files(staging)), key=lambda name: name in (CONFIG, ADAPTER))
    for stale in set(folder.glob("*.safetensors")) - {folder / name for name in written}:
        stale.unlink()
    for name in written:
        os.replace(staging / name, folder / name)
    _seal(folder, _files(folder))


def _disown(folder: Path) -> None:
    """From here on nothing loads what is in the folder."""
    for name in (MANIFEST, CONFIG, ADAPTER):
        (folder / name).unlink(missing_ok=True)


def _seal(folder: Path, files: Sequence[Path]) -> None:
    for file in files:
        _flush(file)
    manifest = folder / f".{MANIFEST}"
    write_json(manifest, {"files": {file.name: sha256_of(file) for file in files}})
    _flush(manifest)
    os.replace(manifest, folder / MANIFEST)
    _flush(folder)


def _files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.name != MANIFEST)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- trusting ----------------------------------------------------------------------------------------------


def _refuse_code(folder: Path) -> None:
    for name in (CONFIG, "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in read_json(file):
            raise CheckpointError(f"{file}: asks for code of its own (auto_map), which is refused")


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if pickles:
        raise CheckpointError(
            f"{folder}: its only weights are pickle files ({pickles[0]}), which can run code; "
            "convert them to safetensors first"
        )
    raise CheckpointError(f"{folder}: no weights: there is no .safetensors file")


def _verify_manifest(folder: Path) -> None:
    files = _manifest_files(folder)
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, though the manifest names it")
        if sha256_of(file) != expected:
            raise CheckpointError(f"{file}: damaged or changed: its SHA-256 is not the manifest's")
    for file in _unlisted(folder, files):
        raise CheckpointError(f"{file}: would be loaded, but the manifest does not name it")


def _manifest_files(folder: Path) -> dict[str, str]:
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST}: has no `files`")
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST}: {name!r} is not the name of a file in this folder")
    return files


def _unlisted(folder: Path, files: dict[str, str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        is_loaded = path.suffix in LOADED_SUFFIXES or path.name in LOADED_NAMES
        if is_loaded and path.is_file() and path.name not in files:
            yield path


def _download(name: str) -> Path:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or not name
    if looks_local:
        raise CheckpointError(f"{name}: no such checkpoint folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client raises many kinds, all of which mean that it cannot be had
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name}: no such folder, and not to be had from the hub: {reason}") from error
