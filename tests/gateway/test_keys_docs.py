"""docs/keys.md: its commands run in their order, and its tables name what the code knows."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import httpx
import pytest

from gateway import keys_file
from gateway.admission import Reason
from gateway.allowance import Rate
from gateway.auth import METRICS_PATHS, OPEN_PATHS
from gateway.keys_flags import build_parser
from tests.gateway.fake_servers import FakeVllm, Sample
from tests.gateway.processes import gateway

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
START = "python -m gateway --policy-url http://127.0.0.1:8100 "


async def run_blocks(folder: Path, blocks: list[tuple[str, str]], url: str = "") -> str:
    """Run blocks one after the other in one shell, which goes on where the last one ended."""
    lines = ["set -e", "[ ! -e environment ] || . ./environment"]
    for language, code in blocks:
        code = code.replace("http://127.0.0.1:8000", url).replace("curl ", "curl --fail --silent ")
        lines.append(code if language == "bash" else f"python - <<'END'\n{code}\nEND")
    lines.append("export -p > environment")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def becomes_401(url: str, secret: str) -> None:
    """Until a key is out of force."""
    headers = {"authorization": f"Bearer {secret}"}
    deadline = time.monotonic() + 20
    async with httpx.AsyncClient(base_url=url) as http:
        while (await http.get("/v1/models", headers=headers)).status_code != 401:
            assert time.monotonic() < deadline, "the gateway did not notice that the key was revoked"
            await asyncio.sleep(0.05)


async def test_the_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (start,) = (number for number, (_, code) in enumerate(BLOCKS) if code.startswith(START))
    vllm = FakeVllm()
    vllm.models, vllm.samples = ["tiny"], [Sample("the answer to Python")]
    await vllm.start()
    try:
        await run_blocks(tmp_path, BLOCKS[:start])
        argv = shlex.split(BLOCKS[start][1])[3:]
        argv = [vllm.url if word.startswith("http:") else word for word in argv]
        argv = [str(tmp_path / word) if word == "keys.json" else word for word in argv]
        async with gateway(*argv) as running:
            url = running.url
            assert (await running.http.get("/v1/models")).status_code == 401
            said = await run_blocks(tmp_path, BLOCKS[start + 1 :], url)
            ci = re.search(r"^sk-bonsai-\S+$", said, re.MULTILINE)
            assert ci is not None, "the second key"
            await becomes_401(url, ci[0])
    finally:
        await vllm.stop()
    assert '"tiny"' in said, "curl's list of models"
    assert "the answer to Python" in said
    assert [key.name for key in keys_file.read(tmp_path / "keys.json")] == ["alice", "ci"]
    alice, ci_key = keys_file.read(tmp_path / "keys.json")
    assert len(alice.retired) == 1
    assert ci_key.revoked is not None


@pytest.mark.parametrize("reason", get_args(Reason))
def test_every_reason_of_a_refusal_is_documented(reason: str) -> None:
    assert f"| `{reason}` |" in TEXT


@pytest.mark.parametrize("field", Rate.__struct_fields__)
def test_every_header_is_documented(field: str) -> None:
    assert f"| `x-ratelimit-{field.replace('_', '-')}` |" in TEXT


def test_every_flag_of_create_is_documented() -> None:
    commands = build_parser()._subparsers
    assert commands is not None
    choices = commands._group_actions[0].choices
    assert isinstance(choices, dict)
    flags = {action.option_strings[-1] for action in choices["create"]._actions} - {
        "--help",
        "--keys",
        "--name",
    }
    assert len(flags) == 7
    for flag in flags:
        assert f"| `{flag}` |" in TEXT


@pytest.mark.parametrize("path", sorted(OPEN_PATHS | METRICS_PATHS))
def test_every_open_path_is_documented(path: str) -> None:
    assert f"`{path}`" in TEXT
