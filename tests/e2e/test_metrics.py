"""The metrics of vLLM that dashboards, rules and our own notes name are those that a real vLLM shows."""

import asyncio
import re
from pathlib import Path

import httpx

from tests.e2e.commands import Served

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"\bvllm:[a-z]\w+")
ROLE = re.compile(r"_(bucket|sum|count)$")


def named() -> set[str]:
    """In dashboards, rules, manifests of Kubernetes and guides."""
    files = [file for folder in ("deploy", "docs") for file in (ROOT / folder).rglob("*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in {".json", ".yaml", ".md"}]
    return {name for text in texts for name in NAMED.findall(text)}


def shown(text: str) -> set[str]:
    """Names of samples, and those of histograms without their role."""
    names = set(re.findall(r"^(vllm:\w+)", text, re.MULTILINE))
    return names | {ROLE.sub("", name) for name in names}


async def test_a_real_vllm_shows_every_metric_that_is_named(served: Served) -> None:
    body = {"model": served.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        answers = await asyncio.gather(
            *(http.post(f"{served.url}/v1/chat/completions", json=body | {"best_of": n}) for n in (1, 4))
        )
        assert [answer.status_code for answer in answers] == [200, 200]
        said = (await http.get(f"{served.policy_url}/metrics")).text
    assert len(named()) >= 9
    assert named() - shown(said) == set()
