"""Continuing: the same bits as a run that was never interrupted, and nothing else is continued."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainers.__main__ import main
from trainers.formats import sha256_of
from trainers.resume import find_checkpoint, step_checkpoints

ALGORITHM_DATA = [
    (["sft"], "demonstrations"),
    (["reward"], "pairs"),
    (["reward", "--loss_type", "choice"], "pairs"),
    (["dpo"], "pairs"),
    (["dpo", "--loss_type", "ipo"], "pairs"),
    (["dpo", "--loss_type", "orpo"], "pairs"),
]


def words(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
    steps = ["--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    return [*named, *steps, "--use_cpu", "--save_steps", "4", "--learning_rate", "1e-3", *more]


def interrupted(arguments: Sequence[str], output: Path) -> None:
    """Runs to step 8 of 15 with everything after checkpoint-8 thrown away, as a crash would."""
    assert main(arguments) == 0
    for path in output.iterdir():
        if path.is_file():
            path.unlink()
    for later in step_checkpoints(output):
        if later.name != "checkpoint-8":
            for file in later.iterdir():
                file.unlink()
            later.rmdir()


@pytest.mark.parametrize(("algorithm", "data"), ALGORITHM_DATA)
def test_a_continued_run_ends_in_the_same_bits(
    algorithm: list[str], data: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(data)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*algorithm, *words(base, file, whole)]) == 0
    interrupted([*algorithm, *words(base, file, cut)], cut)
    assert main([*algorithm, *words(base, file, cut, "--resume_from_checkpoint")]) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    lines = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9, 16))
    before = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert lines[-1]["loss"] == before["loss"]
    assert lines[-1]["tokens"] == before["tokens"]


def test_where_there_is_no_checkpoint_yet_it_starts_from_the_beginning(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    arguments = words(base, demonstrations, tmp_path / "out", "--max_steps", "1", "--resume_from_checkpoint")
    assert main(["sft", *arguments]) == 0


def test_a_finished_run_continues_to_its_end(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    arguments = words(base, demonstrations, tmp_path / "out", "--max_steps", "4")
    assert main(["sft", *arguments]) == 0
    before = sha256_of(tmp_path / "out" / "model.safetensors")
    assert main(["sft", *arguments, "--resume_from_checkpoint"]) == 0
    assert sha256_of(tmp_path / "out" / "model.safetensors") == before


@pytest.mark.parametrize(
    ("more", "changed"), [(["--seed", "7"], "seed"), (["--learning_rate", "1"], "learning_rate")]
)
def test_other_settings_are_another_run(
    more: list[str],
    changed: str,
    base: Path,
    demonstrations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = words(base, demonstrations, tmp_path / "out")
    assert main(["sft", *arguments]) == 0
    assert main(["sft", *arguments, *more, "--resume_from_checkpoint"]) == 2
    assert f"changed: {changed}" in capsys.readouterr().err


def test_other_data_are_another_run(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(base, demonstrations, tmp_path / "out")
    assert main(["sft", *arguments]) == 0
    demonstrations.write_text("".join(demonstrations.read_text().splitlines(keepends=True)[1:]))
    assert main(["sft", *arguments, "--resume_from_checkpoint"]) == 2
    assert "changed: data" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_continued(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(base, demonstrations, tmp_path / "out", "--max_steps", "4")
    assert main(["sft", *arguments]) == 0
    (tmp_path / "out" / "checkpoint-4" / "training_state.json").write_text("{}")
    assert main(["sft", *arguments, "--resume_from_checkpoint"]) == 3
    assert "training_state.json: damaged or changed" in capsys.readouterr().err


def test_a_trained_model_is_no_place_to_continue_from(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no verified training state"):
        find_checkpoint(tmp_path, str(base))


@pytest.mark.parametrize(("loss_type", "asks"), [("sigmoid", True), ("orpo", False)])
def test_reference_log_probabilities_are_kept_where_there_is_a_reference(
    loss_type: str, asks: bool, base: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ["--loss_type", loss_type, "--max_steps", "4"]
    assert main(["dpo", *words(base, pairs, tmp_path / "out", *flags)]) == 0
    state = load_file(tmp_path / "out" / "checkpoint-4" / "training_state.safetensors")
    assert ("memory.reference_logps" in state) is asks


@pytest.mark.slow
def test_a_full_disk_is_exit_4_and_leaves_nothing_half_written(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    """On a file system of 300 KiB, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = words(base, demonstrations, disk / "out", "--save_steps", "1")
    listing = tmp_path / "listing"
    script = (
        f"mount -t tmpfs -o size=300k none {disk} || exit 77\n"
        f'"$@"; code=$?; ls -A {disk}/out {disk} > {listing}; exit $code'
    )
    command = [
        "unshare",
        "-Urm",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "trainers",
        "sft",
        *arguments,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode in (1, 77) and "Traceback" not in result.stderr:
        pytest.skip("this machine does not allow a mount namespace of one's own")
    assert result.returncode == 4, result.stderr
    assert "error: the disk is full" in result.stderr
    assert "staging" not in listing.read_text()
    assert "manifest.json" not in listing.read_text()
