"""Foreign errors become ours, with the exit code that the contract names."""

import errno

import pytest

from trainers import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError(""), 2),
        (errors.DataError(""), 3),
        (errors.CheckpointError(""), 3),
        (errors.FolderInUseError(""), 5),
        (errors.DivergedError(""), 6),
        (errors.StoppedError(""), 143),
        (errors.StoppedError("", 130), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 4),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 4),
        (MemoryError(), 7),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 7),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 7),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    known = errors.translate(error)
    assert known is not None
    assert known.exit_code == code


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError(errno.EACCES, "denied")])
def test_what_is_not_known_stays_what_it_is(error: Exception) -> None:
    assert errors.translate(error) is None
