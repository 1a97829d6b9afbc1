"""The command line: every exit code of the contract, one line for each error."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tests.trainers.conftest import WriteRows, chat
from trainers import folder
from trainers.__main__ import ALGORITHMS, main


def command(base: Path, data: Path, output: Path, *more: str, algorithm: str = "sft") -> list[str]:
    settings = {"--model_name_or_path": base, "--dataset_name": data, "--output_dir": output}
    words = [str(word) for pair in settings.items() for word in pair]
    return [algorithm, *words, "--use_cpu", "--max_steps", "2", *more]


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The error line; the test fails where there is a traceback or more than one."""
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in text
    return errors[0]


def test_help_names_every_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in ALGORITHMS)


def test_no_or_an_unknown_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
    assert main(["sfd"]) == 2
    assert "no algorithm 'sfd'" in one_error(capsys)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_teaches_its_flags(algorithm: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([algorithm, "--help"])
    assert caught.value.code == 0
    assert f"python -m trainers {algorithm}" in capsys.readouterr().out


def test_0_and_the_folder_of_the_contract(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    assert main(command(base, demonstrations, tmp_path / "out")) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {folder.SETTINGS, folder.METRICS, folder.PLOT, "manifest.json", "alignment.json"} <= names
    lines = [json.loads(line) for line in (tmp_path / "out" / folder.METRICS).read_text().splitlines()]
    assert {"step", "loss", "learning_rate", "tokens_per_second", "epoch"} <= set(lines[-1])


def test_2_for_a_setting_that_makes_no_sense(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command(base, demonstrations, tmp_path / "out", "--learning_rate", "-1"))
    assert caught.value.code == 2
    assert "--learning_rate must be above 0, not -1.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_3_for_a_malformed_line(
    base: Path, write_rows: WriteRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows("bad.jsonl", [chat("q", "a"), {"messages": 5}])
    assert main(command(base, data, tmp_path / "out")) == 3
    assert one_error(capsys).startswith(f"error: {data}, line 2: ")
    assert not (tmp_path / "out" / "config.json").exists()


def test_3_for_a_pickle(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copytree(base, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert main(command(copy, demonstrations, tmp_path / "out")) == 3
    assert "pickle files" in one_error(capsys)


def test_4_for_a_full_disk(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / folder.METRICS).symlink_to("/dev/full")
    assert main(command(base, demonstrations, output)) == 4
    assert "the disk is full" in one_error(capsys)


def test_5_for_a_folder_in_use(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.lock(tmp_path / "out"):
        assert main(command(base, demonstrations, tmp_path / "out")) == 5
    assert "another run" in one_error(capsys)


def test_6_for_a_run_that_diverges(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--learning_rate", "1e30", "--max_steps", "9", "--lr_scheduler_type", "constant"]
    assert main(command(base, demonstrations, tmp_path / "out", *flags)) == 6
    assert "checkpoint" in one_error(capsys)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("algorithm", ["reward", "dpo"])
def test_each_kind_of_data_goes_to_its_algorithm(
    algorithm: str, base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(base, demonstrations, tmp_path / "out", algorithm=algorithm)) == 3
    assert "needs `chosen` and `rejected`" in one_error(capsys)


def test_an_unexpected_error_is_not_hidden(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    output: Any = tmp_path / "out"
    output.mkdir()
    (output / folder.METRICS).mkdir()
    with pytest.raises(IsADirectoryError):
        main(command(base, demonstrations, output))
