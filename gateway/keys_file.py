"""The keys file: JSON, mode 0600, read strictly, and written so that neither a crash nor a second command
loses a key. It holds no secret, only hashes; who can write it can open the door.
"""

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.keys import Key, KeysError, check_distinct, clean

_LONG_NAME = re.compile(r"unknown field `.{32,}?`(?= - at `\$|$)", re.DOTALL)
MAX_BYTES = 64 * 1024 * 1024
Keys = tuple[Key, ...]


class KeysFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: Keys


def read(path: Path) -> Keys:
    """The keys in a file.

    Raises:
        KeysError: it cannot be read or is not what it should be; the message names file and field.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise KeysError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        keys = msgspec.json.decode(raw, type=KeysFile).keys
        check_distinct(keys)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeysError) as error:
        raise KeysError(f"{path}: {_explain(error)}") from None
    return keys


def update(path: Path, change: Callable[[Keys], Keys], *, create: bool = False) -> Keys:
    """Put what `change` makes of a file's keys in their place; `create` lets the file be new.

    Raises:
        KeysError: as `read`; or the folder cannot be written to. The file is as it was.
    """
    path = path.resolve()  # a link stays one
    if not create and not path.exists():
        raise _missing(path)
    try:
        with _locked(path):
            keys = change(() if create and not path.exists() else read(path))
            check_distinct(keys)
            _write(path, msgspec.json.format(msgspec.json.encode(KeysFile(keys=keys))) + b"\n")
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {error.strerror}") from None
    return keys


def open_to_others(path: Path) -> bool:
    """Whether people beside its owner may read or write it."""
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False


def _missing(path: Path) -> KeysError:
    return KeysError(
        f"{path}: no such file; `python -m gateway keys create --keys {path} --name NAME` makes it"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The lock file stays: to delete it would let a third one lock its successor."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, content: bytes) -> None:
    """All or nothing: readers see the old file or the new one, whole, and so does who comes after a crash."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _explain(error: Exception) -> str:
    """The path first, as one would write it. A name as long as a secret is not quoted: it could be one."""
    if isinstance(error, KeysError):
        return str(error)
    if not isinstance(error, msgspec.ValidationError):
        return "not JSON in UTF-8"
    text = _LONG_NAME.sub("unknown field `...`", str(error))
    problem, _, path = text.rpartition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    return clean(f"{path}: {problem}" if problem and path else text)
