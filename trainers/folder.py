"""The output folder of a run: held by one process at a time, never mixed with an earlier run's files."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainers import checkpoint, plots
from trainers.config import RunConfig
from trainers.errors import ConfigError, FolderInUseError
from trainers.files import write_whole
from trainers.resume import find_checkpoint, step_checkpoints

SETTINGS = "training_config.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
PLOT = "loss.png"
CURVES = "curves.png"
EVENTS = "tensorboard"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it; FolderInUseError where another process does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FolderInUseError(f"{folder}: another run is training into this folder") from error
    finally:
        os.close(descriptor)


def prepare(folder: Path, config: RunConfig) -> Path | None:
    """Settles what is in the folder already; returns the checkpoint to continue from, if any.

    The settings are written first of all, so that a run that fails leaves behind what it was asked to do.
    """
    for unfinished in folder.glob(".*.staging"):
        shutil.rmtree(unfinished)
    resumed = None
    if config.resume_from_checkpoint is not None:
        resumed = find_checkpoint(folder, config.resume_from_checkpoint)
    elif config.overwrite_output_dir:
        _clear(folder)
    elif step_checkpoints(folder) or (folder / checkpoint.MANIFEST).exists():
        raise ConfigError(
            f"--output_dir {folder}: holds an earlier run; continue with --resume_from_checkpoint, replace "
            "it with --overwrite_output_dir, or choose another folder"
        )
    if resumed is None:
        (folder / METRICS).write_text("", encoding="utf-8")
        (folder / SAMPLES).unlink(missing_ok=True)
    checkpoint.write_json(folder / SETTINGS, asdict(config))
    return resumed


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Adds a line to metrics.jsonl."""
    _append(folder / METRICS, line)


def append_sample(folder: Path, line: dict[str, Any]) -> None:
    """Adds a line to samples.jsonl: an answer of the policy in training, with the `step` it belongs to."""
    _append(folder / SAMPLES, line)


def forget_metrics_after(folder: Path, step: int) -> None:
    """Drops the lines (and samples) of steps that will be done again."""
    for path in filter(Path.exists, (folder / METRICS, folder / SAMPLES)):
        lines = plots.read_metrics(path)
        write_whole(path, [_line(line) for line in lines if line["step"] <= step])


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(line))


def _line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _clear(folder: Path) -> None:
    checkpoint.remove_model_files(folder)
    for old in step_checkpoints(folder):
        checkpoint.remove(old)
