"""What the gateway finds out about the servers behind it before it serves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway import check_cli
from gateway.config import GatewayConfig, PolicyConfig, RewardConfig
from gateway.examine import Finding, examine, examine_at_start
from gateway.reward_clients import RewardReplicas
from gateway.runtime import Runtime
from gateway.vllm_client import VllmPolicy
from tests.gateway.fake_servers import MODEL, FakeRewardServer, FakeVllm


@asynccontextmanager
async def world(**policy: Any) -> AsyncGenerator[tuple[FakeVllm, FakeRewardServer, Runtime], None]:
    """Both servers and a runtime for them."""
    vllm, rewards = FakeVllm(), FakeRewardServer()
    async with AsyncExitStack() as stack:
        for server in (vllm, rewards):
            await server.start()
            stack.push_async_callback(server.stop)
        config = GatewayConfig(
            policies=(PolicyConfig(urls=(vllm.url,), **policy),),
            rewards=(RewardConfig(urls=(rewards.url,), name="judge"),),
        )
        runtime = Runtime.build(config, VllmPolicy, RewardReplicas)
        stack.push_async_callback(runtime.close)
        yield vllm, rewards, runtime


def levels(findings: list[Finding]) -> list[str]:
    """Of all findings."""
    return [finding.level for finding in findings]


async def test_all_is_well() -> None:
    async with world(name=MODEL) as (_, rewards, runtime):
        rewards.extra = {"usage": {"tokens": 0}}
        findings = await examine(runtime)
    assert levels(findings) == ["ok", "ok"]
    # "What is the Rhine?" and "It is a river.", by their characters
    assert "one question (32 tokens)" in findings[0].text


async def test_what_one_answers_and_the_other_cannot_judge_is_a_warning() -> None:
    async with world() as (_, rewards, runtime):
        rewards.refuse_roles = {"tool"}
        findings = await examine(runtime)
    [warning] = [finding for finding in findings if finding.level == "warning"]
    assert (warning.subject, "a tool's answer" in warning.text) == ("reward model judge", True)


async def test_what_the_policy_refuses_need_not_be_judged() -> None:
    async with world() as (vllm, rewards, runtime):
        vllm.roles -= {"system"}
        rewards.refuse_roles = {"system"}
        findings = await examine(runtime)
    assert "warning" not in levels(findings)
    assert "refuses a system turn" in findings[0].text


async def test_a_policy_that_does_not_tokenize_is_taken_as_it_is() -> None:
    async with world() as (vllm, _, runtime):
        vllm.tokenizes = False
        findings = await examine(runtime)
    assert levels(findings) == ["ok", "ok"]
    assert "does not say" in findings[0].text


async def test_who_does_not_answer_or_serves_another_model_is_an_error() -> None:
    async with world(name="other") as (_, rewards, runtime):
        await rewards.stop()
        findings = await examine(runtime)
    assert levels(findings) == ["error", "error"]
    assert "does not serve other" in findings[0].text


async def test_a_policy_that_lists_no_model_is_an_error() -> None:
    async with world() as (vllm, _, runtime):
        vllm.models = []
        findings = await examine(runtime)
    assert (levels(findings), findings[0].text) == (["error", "ok"], "it lists no model")


async def test_a_start_waits_for_its_servers_and_learns_their_control_tokens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world() as (vllm, rewards, runtime):
        vllm.tokenizer_info = {"eos_token": "<<<stop>>>"}
        rewards.refuse_roles = {"system"}
        await vllm.stop()
        starting = asyncio.create_task(examine_at_start(runtime))
        await vllm.start()
        await starting
    assert runtime.policies[0].control_text.text("a <<<stop>>>") != "a <<<stop>>>"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_command_prints_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    async with world() as (vllm, rewards, _):
        flags = ["--policy-url", vllm.url, "--reward-url", rewards.url]
        assert await asyncio.to_thread(check_cli.main, flags) == 0
        assert "takes one question" in capsys.readouterr().out
        await rewards.stop()
        assert await asyncio.to_thread(check_cli.main, flags) == 1
        assert "error" in capsys.readouterr().out


def test_the_command_prints_the_schema_and_says_what_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_cli.main(["--schema"]) == 0
    assert '"policies"' in capsys.readouterr().out
    flags = ["--policy-url", "http://127.0.0.1:1", "--reward-url", "http://127.0.0.1:2"]
    assert check_cli.main([*flags, "--reward-kind", "get_reward", "--reward-template", "{%"]) == 2
    assert "template" in capsys.readouterr().err
