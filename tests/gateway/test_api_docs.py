"""docs/api.md: its examples run, and it names every code, reason, option and limit that the code knows."""

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.flags import build_parser
from gateway.protocol import Alignment
from tests.gateway.fakes import running

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
    found: set[str] = set()
    for node in (node for source in SOURCES for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ClassDef):
            names = [s for s in node.body if isinstance(s, ast.Assign | ast.AnnAssign)]
            values = {
                ast.unparse(s.targets[0] if isinstance(s, ast.Assign) else s.target): s.value for s in names
            }
            found |= {
                v.value for k, v in values.items() if k == "code" and isinstance(v, ast.Constant) and v.value
            }
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            found.add(node.value.value)
    return {code for code in found if isinstance(code, str)} - {"client_closed_request"}


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
        assert re.search(
            rf"\| `{action.option_strings[0]}` \| {action.default:g}\b", TEXT.replace("4194304", "4.1943e+06")
        )
