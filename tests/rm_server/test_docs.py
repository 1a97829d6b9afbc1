"""docs/reward-server.md names every flag and error code, and its examples run."""

from __future__ import annotations

import ast
import re
import signal
from pathlib import Path

import pytest

from rm_server.config import BATCH_TOKENS, parse_args
from tests.rm_server.test_main import process

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reward-server.md").read_text()


def test_every_error_code_is_documented() -> None:
    codes: set[str] = set()
    for path in (ROOT / "rm_server").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                codes.add(str(node.value.value))
    assert len(codes) > 5
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


def test_every_flag_is_documented_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    flags = set(re.findall(r"(--[a-z-]+)", capsys.readouterr().out)) - {"--help"}
    options = PAGE.split("## Options")[1].split("## Watching")[0]
    assert set(re.findall(r"`(--[a-z-]+)", options)) == flags
    config = parse_args(["--model", "x"])
    for value in (config.host, config.port, config.dtype, config.max_queue_tokens, config.max_body_bytes):
        assert f" {value}" in options
    assert all(str(tokens) in options for tokens in BATCH_TOKENS.values())


@pytest.mark.slow
def test_the_examples_run_and_ctrl_c_ends_it(tiny_checkpoint: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    with process("--model", str(tiny_checkpoint)) as (server, url):
        program = "".join(examples).replace("http://127.0.0.1:8001", url)
        assert url in program
        exec(compile(program, "docs/reward-server.md", "exec"), {})
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
