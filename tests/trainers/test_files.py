"""Files that appear whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainers.files import write_whole


def test_a_file_is_replaced_with_all_that_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    write_whole(path, ["old\n"])
    write_whole(path, (f"{line}\n" for line in range(2)))
    assert path.read_text() == "0\n1\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def parts() -> Iterator[str]:
        yield "new\n"
        raise ValueError("no more")

    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    with pytest.raises(ValueError, match="no more"):
        write_whole(path, parts())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
