"""`python -m gateway up`, from its flags to its exit code, as users run it."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.launch import main, make_plan
from gateway.launch_flags import read_flags
from tests.gateway.fake_servers import MODEL, FakeRewardServer, FakeVllm
from tests.gateway.launch_fakes import free_port, has_ended
from tests.gateway.test_launch_checks import write_checkpoint

TINY_MODEL = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"


@pytest.fixture
async def policy() -> AsyncIterator[FakeVllm]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def reward() -> AsyncIterator[FakeRewardServer]:
    server = FakeRewardServer()
    await server.start()
    yield server
    await server.stop()


class Up:
    """A running `python -m gateway up`."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self.ready_file = ready_file
        self.lines: list[str] = []

    async def ready(self) -> None:
        """Until it says the last of what it says when all is up."""
        assert self.process.stdout is not None
        while not self.lines or "Ctrl-C stops everything" not in self.lines[-1]:
            line = (await self.process.stdout.readline()).decode()
            assert line, "ended before it was ready:\n" + "".join(self.lines)
            self.lines.append(line)

    async def end(self) -> tuple[int, str]:
        """Its exit code and the rest of what it said."""
        rest, _ = await asyncio.wait_for(self.process.communicate(), 60)
        assert self.process.returncode is not None
        return self.process.returncode, rest.decode()


@asynccontextmanager
async def up(folder: Path, *flags: str) -> AsyncIterator[Up]:
    """Start it on a free port; it has ended when this ends."""
    ready_file = folder / "ready.json"
    command = [sys.executable, "-m", "gateway", "up", *flags, "--ready-file", str(ready_file)]
    command += ["--log-dir", str(folder / "logs")]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        yield Up(process, ready_file)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def test_in_front_of_running_servers_it_serves_until_sigterm(
    tmp_path: Path, policy: FakeVllm, reward: FakeRewardServer
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    flags = ["--policy-url", policy.url, "--reward-url", reward.url, "--port", url.rpartition(":")[2]]
    async with up(tmp_path, *flags, "--default-best-of", "2", "--gateway-args", "--max-best-of 3") as stack:
        await stack.ready()
        assert f"Bonsai is up: {url}/v1" in "".join(stack.lines)
        assert f'"model": "{MODEL}"' in "".join(stack.lines)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            refused = await client.post("/v1/chat/completions", json={**body, "best_of": 4})
        assert (answer["alignment"]["best_of"], answer["choices"][0]["message"]["content"]) == (2, "aa")
        assert refused.status_code == 400
        ready = json.loads(stack.ready_file.read_text())
        assert ready["url"] == url
        assert list(ready["pids"]) == ["gateway"]
        stack.process.terminate()
        code, rest = await stack.end()
        assert (code, rest.strip()) == (0, "bonsai up: stopping")
        assert has_ended(ready["pids"]["gateway"])
        assert not stack.ready_file.exists()


async def test_a_ready_file_that_cannot_be_is_told_before_anything_starts(
    tmp_path: Path, policy: FakeVllm
) -> None:
    (tmp_path / "ready.json").mkdir()
    async with up(tmp_path, "--policy-url", policy.url, "--port", "0") as stack:
        code, rest = await stack.end()
    assert code == 2
    assert f"--ready-file {tmp_path / 'ready.json'}: Is a directory" in rest


async def test_a_gateway_that_dies_ends_the_stack_with_one_clear_message(
    tmp_path: Path, policy: FakeVllm
) -> None:
    async with up(tmp_path, "--policy-url", policy.url, "--port", "0") as stack:
        await stack.ready()
        os.kill(json.loads(stack.ready_file.read_text())["pids"]["gateway"], signal.SIGKILL)
        code, rest = await stack.end()
    assert code == 1
    assert rest.strip().startswith("bonsai up: gateway ended with signal SIGKILL; its log is ")


async def test_flags_that_the_gateway_refuses_come_back_with_its_words_and_code(
    tmp_path: Path, policy: FakeVllm
) -> None:
    flags = ["--policy-url", policy.url, "--port", "0", "--gateway-args", "--max-best-of 0"]
    async with up(tmp_path, *flags) as stack:
        code, said = await stack.end()
    assert code == 2
    assert "gateway ended with exit code 2" in said
    assert "--max-best-of must be at least 1" in said


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_cannot_work_is_one_line_and_its_exit_code(
    tmp_path: Path, listener: int, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write_checkpoint(tmp_path / "policy"))
    tampered = write_checkpoint(tmp_path / "tampered")
    (tampered / "config.json").write_text('{"hidden_size": 4096}')
    (tmp_path / "file").write_text("")
    for flags, code, says in [
        (["--policy", str(tmp_path / "nowhere")], 3, "no such checkpoint folder"),
        (["--policy", str(tampered)], 3, "does not match its SHA-256"),
        (["--policy", good, "--reward-model", str(tampered)], 3, "does not match its SHA-256"),
        (["--policy", good, "--port", str(listener)], 2, f"--port: cannot listen on 127.0.0.1:{listener}"),
        (["--policy", good, "--port", "0", "--reward-port", str(listener)], 2, "--reward-port: cannot"),
        (["--policy-url", f"http://127.0.0.1:{free_port()}"], 2, "no server answers there"),
        (["--policy", good, "--port", "0", "--log-dir", str(tmp_path / "file" / "x")], 2, "Not a directory"),
    ]:
        assert main(flags) == code
        error = capsys.readouterr().err
        assert error.startswith("bonsai up: ")
        assert error.count("\n") == 1
        assert says in error


def test_a_plan_starts_the_engines_first_and_the_gateway_in_front_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = write_checkpoint(tmp_path / "sft")
    reward = write_checkpoint(tmp_path / "reward", manifest=False)
    flags = ["--policy", str(policy), "--reward-model", str(reward), "--port", "0"]
    more = ["--vllm-args", "--seed 1", "--reward-args", "--threads 3", "--gateway-args", "--max-queue 7"]
    plan = make_plan(read_flags([*flags, *more]))
    assert [[spec.name for spec in stage] for stage in plan.stages] == [["policy", "reward"], ["gateway"]]
    engine, judge, gateway = (spec for stage in plan.stages for spec in stage)
    assert "--served-model-name sft" in " ".join(engine.command)
    assert f"--model reward={reward}" in " ".join(judge.command)
    policy_url, reward_url = (spec.ready_url.partition("/health")[0] for spec in (engine, judge))
    assert f"--policy-url {policy_url} --reward-url {reward_url}" in " ".join(gateway.command)
    ends = [" ".join(spec.command[-2:]) for spec in (engine, judge, gateway)]
    assert ends == ["--seed 1", "--threads 3", "--max-queue 7"]
    assert plan.has_reward
    assert capsys.readouterr().err == f"bonsai up: {reward} has no manifest.json: taken unverified\n"


def test_a_hub_name_is_left_to_the_servers() -> None:
    plan = make_plan(read_flags(["--policy", "some-org/some-model", "--port", "0"]))
    assert "--model some-org/some-model" in " ".join(plan.stages[0][0].command)
    assert not plan.has_reward


@pytest.mark.slow
@pytest.mark.skipif(not TINY_MODEL.is_dir(), reason="the tiny model in ../shared/data is not here")
async def test_a_real_engine_serves_and_dies_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    flags = ["--policy", str(TINY_MODEL), "--port", "0", "--dtype", "float32", "--max-model-len", "256"]
    async with up(tmp_path, *flags) as stack:
        await stack.ready()
        ready = json.loads(stack.ready_file.read_text())
        body = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
        async with httpx.AsyncClient(base_url=ready["url"], trust_env=False, timeout=60) as client:
            answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["usage"]["completion_tokens"] == 4
        pids = [*ready["pids"].values(), *children(ready["pids"]["policy"])]
        assert len(pids) >= 3  # vLLM's server, its engine, the gateway
        stack.process.kill()
        await stack.process.communicate()
        assert all(has_ended(pid) for pid in pids)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]
