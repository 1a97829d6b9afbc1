"""docs/configuration.md: its file works against real servers, and it names every key with its default."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway import config_file
from gateway.api_server import create_app
from gateway.check_cli import main as check
from gateway.config import GatewayConfig, Limits, PolicyConfig, RewardConfig
from tests.gateway.fake_servers import FakeRewardServer, FakeVllm
from tests.gateway.stack import serving

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@asynccontextmanager
async def servers() -> AsyncGenerator[str, None]:
    """The example with the addresses of servers that run."""
    text = EXAMPLE
    async with AsyncExitStack() as stack:
        for url in re.findall(r"http://127\.0\.0\.1:\d+", EXAMPLE):
            server = FakeVllm() if ":81" in url else FakeRewardServer()
            if isinstance(server, FakeVllm):
                server.models = ["org/large", "small"]
            await server.start()
            stack.push_async_callback(server.stop)
            text = text.replace(url, server.url)
        yield text


async def test_the_example_serves_all_that_it_names() -> None:
    async with AsyncExitStack() as stack:
        text = await stack.enter_async_context(servers())
        url = await stack.enter_async_context(serving(create_app(config_file.parse(text.encode()))))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
        for model in ("large", "gpt-4o", "small", "gpt-4o:best-of-4"):
            for judge in ("helpful", "harmless", "openrlhf"):
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": "Hi"}],
                    "best_of": 2,
                    "alignment": {"reward_model": judge},
                }
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == "aa"
        unknown = body | {"alignment": {"reward_model": "else"}}
        refused = await http.post("/v1/chat/completions", json=unknown)
        assert refused.json()["error"]["code"] == "reward_model_not_found"
        listed = [card["id"] for card in (await http.get("/v1/models")).json()["data"]]
    assert listed[:3] == ["large", "gpt-4o", "small"]
    assert "gpt-4o:best-of-16" in listed


async def test_check_finds_nothing_wrong_with_the_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    async with servers() as text:
        file.write_text(text, encoding="utf-8")
        assert await asyncio.to_thread(check, ["--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("takes one question") == 5
    assert "warning" not in shown


@pytest.mark.parametrize("kind", [GatewayConfig, PolicyConfig, RewardConfig, Limits])
def test_every_key_is_documented_with_its_default(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        assert f"`{field.name}`" in TEXT
        if isinstance(field.default, int | float) and kind is not Limits and field.name != "public_metrics":
            assert re.search(rf"`{field.name}` \| {field.default:g} \|", TEXT), field.name
