"""The keys file: strict to read, and written whole or not at all."""

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import keys_file
from gateway.keys import Key, KeysError
from tests.gateway.test_keys import NOW, key

GOOD: dict[str, Any] = {
    "id": "key-0123456789ab",
    "name": "alice",
    "sha256": "a" * 64,
    "created": "2026-01-01T00:00:00Z",
}


def written(folder: Path, content: object) -> Path:
    """A keys file."""
    path = folder / "keys.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o600)
    return path


def mode(path: Path) -> int:
    """Who may read and write it."""
    return stat.S_IMODE(path.stat().st_mode)


def adding(*keys: Key) -> Any:
    """A change that adds keys."""
    return lambda old: (*old, *keys)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    full = key("b", name="bob", expires=NOW, models=["m"], max_best_of=4, tokens_per_day=5)
    assert keys_file.update(path, adding(key("a"), full), create=True)[1] == full
    assert keys_file.read(path)[1] == full
    keys_file.update(path, lambda keys: keys[1:])
    assert keys_file.read(path) == (full,)
    assert mode(path) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_file_by_hand(tmp_path: Path) -> None:
    (found,) = keys_file.read(written(tmp_path, {"keys": [{**GOOD, "max_best_of": None}]}))
    assert (found.name, found.created, found.allowance) == ("alice", datetime(2026, 1, 1, tzinfo=UTC), None)
    assert keys_file.read(written(tmp_path, {"keys": []})) == ()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"keys": [{**GOOD, "tokens": 5}]}, "keys[0]: Object contains unknown field `tokens`"),
        ({"keys": [], "kez": 1}, "Object contains unknown field `kez`"),
        ({}, "Object missing required field `keys`"),
        ({"keys": [GOOD, {"id": GOOD["id"]}]}, "keys[1]: Object missing required field `name`"),
        ({"keys": [{**GOOD, "max_best_of": "4"}]}, "keys[0].max_best_of: Expected `int | null`, got `str`"),
        ({"keys": [{**GOOD, "models": ["a", ""]}]}, "keys[0].models[1]: Expected `str` of length >= 1"),
        ({"keys": [{**GOOD, "created": "2026-01-01T00:00:00"}]}, "keys[0].created: Expected"),
        ({"keys": [GOOD, GOOD]}, "key-0123456789ab (alice) and key-0123456789ab (alice) share a `id`"),
        ([], "Expected `object`, got `array`"),
        (b"", "not JSON in UTF-8"),
        (b'{"keys": []', "not JSON in UTF-8"),
        (b'{"keys": [{"name": "\xff"}]}', "not JSON in UTF-8"),
        (b'{"keys": [' + b"[" * 100_000, "keys[0]: Expected `object`, got `array`"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_the_field(
    tmp_path: Path, content: object, complaint: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(KeysError) as error:
        keys_file.read(path)
    assert str(error.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=60) | st.recursive(st.none() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_no_content_is_a_bug_of_ours(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KeysError):
        keys_file.read(written(tmp_path, content))


def test_a_missing_file_says_how_to_make_it_and_is_not_made_by_others(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for act in (lambda: keys_file.read(path), lambda: keys_file.update(path, adding())):
        with pytest.raises(KeysError, match="no such file; `python -m gateway keys create"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="Is a directory"):
        keys_file.read(tmp_path)
    with pytest.raises(KeysError, match="cannot be written: No such file or directory"):
        keys_file.update(tmp_path / "no" / "keys.json", adding(), create=True)


def test_a_change_that_fails_leaves_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, {"keys": [GOOD]})
    before = path.read_bytes()
    twin = msgspec.convert(GOOD, Key)
    with pytest.raises(KeysError, match="share a `id`"):
        keys_file.update(path, adding(twin))

    def fail(_: keys_file.Keys) -> keys_file.Keys:
        raise KeysError("no")

    with pytest.raises(KeysError, match="no"):
        keys_file.update(path, fail)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_full_disk_leaves_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, {"keys": []})
    code = (
        "import resource, sys; from gateway.keys_cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"  # the kernel refuses the 101st byte
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "create", "--name", "alice", "--keys", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"python -m gateway keys: {path}: cannot be written: File too large\n"
    assert done.stdout == "", "no secret of a key that is not there"
    assert keys_file.read(path) == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    real = written(folder, {"keys": []})
    link = tmp_path / "keys.json"
    link.symlink_to(real)
    keys_file.update(link, adding(key()))
    assert link.is_symlink()
    assert len(keys_file.read(real)) == 1


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    together = threading.Barrier(8)

    def create(number: int) -> None:
        together.wait()
        for count in range(5):
            name = f"k{number}-{count}"
            keys_file.update(path, adding(key(name, name=name)), create=True)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys_file.read(path)) == 40


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys_file.update(path, adding(key("first", name="first")), create=True)
    done = threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not done.is_set():
            seen.append(len(keys_file.read(path)))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(40):
        keys_file.update(path, adding(key(f"k{number}", name=f"k{number}")))
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert len(keys_file.read(path)) == 41


@pytest.mark.parametrize(
    ("bits", "is_open"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)]
)
def test_a_file_that_others_can_open_is_told(tmp_path: Path, bits: int, is_open: bool) -> None:
    path = written(tmp_path, {"keys": []})
    os.chmod(path, bits)
    assert keys_file.open_to_others(path) is is_open
    assert keys_file.open_to_others(tmp_path / "none") is False
