"""Sizes and habits that a linter does not hold."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
# Folders of one machine, spelled so that this file does not name them: what names one works nowhere else.
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:wo" + rb"rk|ro" + rb"ot)/\w")
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ".lock", ".json", ""}


def tracked() -> list[Path]:
    """Every file of the repository that is committed or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / line for line in answer.stdout.splitlines()]
    return [file for file in files if file.is_file()]


def test_no_python_file_is_longer_than_a_person_reads() -> None:
    lengths = {
        str(file.relative_to(ROOT)): file.read_text().count("\n")
        for file in tracked()
        if file.suffix == ".py"
    }
    assert len(lengths) > 20
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_names_a_folder_of_one_machine() -> None:
    texts = [file for file in tracked() if file.suffix in TEXT]
    found = {str(file.relative_to(ROOT)) for file in texts if MACHINE_PATH.search(file.read_bytes())}
    assert found == set()


def test_the_version_has_its_place_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in headings or "Unreleased" in headings


def test_the_license_is_the_one_that_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert declared["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
