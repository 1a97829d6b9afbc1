"""docs/api.md: its examples run, and it names every code, reason, option and limit that the code knows."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.flags import build_parser
from gateway.protocol import Alignment
from tests.gateway.stack import running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
SOURCES = [path.read_text() for path in sorted((ROOT / "gateway").glob("*.py"))]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = {"bash": ["bash", "-ec"], "python": [sys.executable, "-c"]}


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[language for language, _ in BLOCKS])
async def test_examples_run(language: str, code: str) -> None:
    async with running() as stack:
        code = code.replace("http://127.0.0.1:8000", stack.url).replace("curl ", "curl --fail --silent ")
        done = await asyncio.to_thread(
            subprocess.run,
            [*COMMANDS[language], code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "aaaa" in done.stdout


def codes() -> set[str]:
    """Every error code in the source: class attributes and `code=` arguments."""
    found = {
        code for source in SOURCES for code in re.findall(r"""\bcode(?:: [^=]+)? ?= ?"(\w+)\"""", source)
    }
    return found - {"client_closed_request"}  # nobody is there to read it


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in TEXT


@pytest.mark.parametrize("option", Alignment.__struct_fields__)
def test_every_option_is_documented(option: str) -> None:
    assert f"`{option}`" in TEXT


def test_every_limit_is_documented_with_its_default() -> None:
    limits = [action for action in build_parser()._actions if action.dest.startswith("max_")]
    assert len(limits) == 6
    for action in limits:
        assert re.search(rf"\| `{action.option_strings[0]}` \| {action.default:.0f}\b", TEXT)
