"""`bonsai` becomes the program that its first word names."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import PROGRAMS, main


class Executed:
    """Stands in for os.execv: what would have run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def __call__(self, path: str, argv: list[str]) -> None:
        self.calls.append((path, argv))


@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        ("up --policy m", "gateway up --policy m"),
        ("gateway --policy-url u", "gateway --policy-url u"),
        ("rm-server --model m", "rm_server --model m"),
        ("train dpo --beta 0.1", "trainers dpo --beta 0.1"),
        ("load chat --rate 1", "loadtests chat --rate 1"),
        ("train --help", "trainers --help"),
    ],
)
def test_a_word_becomes_a_program(words: str, becomes: str) -> None:
    executed = Executed()
    assert main(words.split(), executed) == 0
    assert executed.calls == [(sys.executable, [sys.executable, "-m", *becomes.split()])]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_program(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    executed = Executed()
    assert main(argv, executed) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in PROGRAMS)
    assert executed.calls == []


def test_an_unknown_word_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"], Executed()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'trian'" in error
    assert "train" in error


def test_the_installed_command_says_its_version() -> None:
    command = Path(sys.executable).with_name("bonsai")
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout == f"bonsai {importlib.metadata.version('bonsai-gateway')}\n"
