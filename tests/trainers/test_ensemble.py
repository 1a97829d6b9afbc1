"""An ensemble's members are single runs, and are told apart from what is in their way."""

import os
from pathlib import Path

import pytest

from tests.trainers.conftest import WriteRows
from trainers import checkpoint
from trainers.__main__ import main
from trainers.formats import sha256_of


def words(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
    return ["reward", *named, "--use_cpu", "--max_steps", "3", "--learning_rate", "1e-3", *more]


def weights(folder: Path) -> str:
    return sha256_of(folder / "model.safetensors")


@pytest.fixture
def ensemble(base: Path, pairs: Path, tmp_path: Path) -> Path:
    """Two members."""
    assert main(words(base, pairs, tmp_path / "e", "--num_members", "2", "--seed", "7")) == 0
    return tmp_path / "e"


def test_each_member_is_what_its_seed_gives_alone(
    ensemble: Path, base: Path, pairs: Path, tmp_path: Path
) -> None:
    assert main(words(base, pairs, tmp_path / "alone", "--seed", "8")) == 0
    assert weights(ensemble / "member-2") == weights(tmp_path / "alone")
    assert weights(ensemble / "member-1") != weights(ensemble / "member-2")
    for name in ("member-1", "member-2"):
        assert checkpoint.verify(ensemble / name) is True
        assert checkpoint.read_json(ensemble / name / "alignment.json")["reward_offset"] != 0
    assert sorted(path.name for path in ensemble.iterdir()) == ["member-1", "member-2"]


def test_it_says_how_to_serve_them(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(base, pairs, tmp_path / "e", "--num_members", "2")) == 0
    out = tmp_path / "e"
    assert f"python -m rm_server --model {out}/member-1+{out}/member-2" in capsys.readouterr().err


def test_a_continued_ensemble_makes_only_what_is_missing(ensemble: Path, base: Path, pairs: Path) -> None:
    before = {name: weights(ensemble / name) for name in ("member-1", "member-2")}
    written = os.stat(ensemble / "member-1" / "model.safetensors").st_mtime_ns
    (ensemble / "member-2" / "manifest.json").unlink()
    (ensemble / "member-2" / "model.safetensors").unlink()
    flags = ["--num_members", "2", "--seed", "7", "--resume_from_checkpoint"]
    assert main(words(base, pairs, ensemble, *flags)) == 0
    assert {name: weights(ensemble / name) for name in before} == before
    assert os.stat(ensemble / "member-1" / "model.safetensors").st_mtime_ns == written


@pytest.mark.parametrize("change", ["seed", "data"])
def test_a_finished_member_of_other_work_is_made_anew(
    change: str, ensemble: Path, base: Path, pairs: Path, write_rows: WriteRows
) -> None:
    before = weights(ensemble / "member-1")
    if change == "data":
        pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[1:]))
    seed = "9" if change == "seed" else "7"
    flags = ["--num_members", "2", "--seed", seed, "--resume_from_checkpoint"]
    assert main(words(base, pairs, ensemble, *flags)) == 0
    assert weights(ensemble / "member-1") != before


def test_what_would_be_taken_for_a_part_of_it_is_refused(
    ensemble: Path, base: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ensemble / "member-2").rename(ensemble / "member-3")
    assert main(words(base, pairs, ensemble, "--num_members", "2", "--overwrite_output_dir")) == 2
    assert "holds member-3 of a larger ensemble" in capsys.readouterr().err


def test_a_folder_with_a_single_model_is_refused(
    ensemble: Path, base: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(base, pairs, ensemble / "member-1", "--num_members", "2")) == 2
    assert "holds a single model" in capsys.readouterr().err


def test_an_earlier_ensemble_is_not_overwritten_unasked(
    ensemble: Path, base: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(base, pairs, ensemble, "--num_members", "2", "--seed", "7")) == 2
    assert "member-1: holds an earlier run" in capsys.readouterr().err


def test_a_path_to_continue_from_makes_no_sense_for_several(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_members", "2", "--resume_from_checkpoint", "there"]
    with pytest.raises(SystemExit) as caught:
        main(words(base, pairs, tmp_path / "e", *flags))
    assert caught.value.code == 2
    assert "--resume_from_checkpoint takes no path" in capsys.readouterr().err
