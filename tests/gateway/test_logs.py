"""The process's log: what goes in and what does not, and in which form."""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.logs import LogOptions, Logs, add_log_flags, log_options


@contextmanager
def logging_to(path: Path, **options: Any) -> Iterator[Logs]:
    """Logs that write into a file."""
    with path.open("ab") as file, Logs(LogOptions(**options), file.fileno()) as logs:
        yield logs


def messages(path: Path) -> list[str]:
    return [json.loads(line)["message"] for line in path.read_text().splitlines()]


def test_whatever_is_logged_inside_is_there_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = logging.getLogger().handlers, logging.getLogger().level, logging.getLogger("gateway").level
    with logging_to(log):
        logging.getLogger("gateway").info("ours")
        logging.getLogger("gateway.supervisor").info("ours too")
        logging.getLogger("aiohttp.client").warning("theirs")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("careful", stacklevel=1)
    after = logging.getLogger().handlers, logging.getLogger().level, logging.getLogger("gateway").level
    assert after == before
    found = messages(log)
    assert found[:3] == ["ours", "ours too", "theirs"]
    assert "careful" in found[3]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["our debug", "our info", "our warning", "their warning"]),
        ("info", ["our info", "our warning", "their warning"]),
        ("warning", ["our warning", "their warning"]),
        ("error", []),
    ],
)
def test_levels_and_that_other_libraries_never_tell_all(
    tmp_path: Path, level: str, expected: list[str]
) -> None:
    with logging_to(tmp_path / "log", level=level):
        for name, who in (("gateway", "our"), ("aiohttp", "their")):
            logger = logging.getLogger(name)
            logger.debug("%s debug", who)
            logger.info("%s info", who)
            logger.warning("%s warning", who)
    assert messages(tmp_path / "log") == expected


def test_a_terminal_gets_text_and_a_file_json(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with Logs(LogOptions(), terminal):
        logging.getLogger("gateway").warning("look")
    assert os.read(ours, 1000).split()[1:] == [b"warning", b"look", b"logger=gateway"]
    with Logs(LogOptions(format="json"), terminal):
        logging.getLogger("gateway").warning("look")
    assert json.loads(os.read(ours, 1000))["message"] == "look"
    os.close(ours)
    os.close(terminal)
    with logging_to(tmp_path / "log", format="text"):
        logging.getLogger("gateway").warning("look")
    assert b"warning  look" in (tmp_path / "log").read_bytes()


def test_flags() -> None:
    parser = argparse.ArgumentParser()
    add_log_flags(parser.add_argument_group("logs"))
    assert log_options(parser.parse_args([])) == LogOptions()
    argv = ["--log-format", "text", "--log-level", "error", "--no-request-log"]
    assert log_options(parser.parse_args(argv)) == LogOptions(format="text", level="error", requests=False)
