"""The test stand: the gateway on one core; on another the fakes behind it and this process, the generator."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec

from loadtests.errors import LoadTestError
from loadtests.fakes.records import Record, State
from loadtests.fakes.script import RewardScript, Script, VllmScript
from loadtests.http_client import HttpClient
from loadtests.processes import Server, cores, free_port, pinned, server


@dataclass(frozen=True)
class Fake:
    """A running fake and its control endpoints."""

    server: Server

    async def state(self) -> State:
        """Its counts."""
        return msgspec.json.decode(await self._control("GET", "state"), type=State)

    async def records(self) -> list[Record]:
        """Its newest calls."""
        return msgspec.json.decode(await self._control("GET", "records"), type=list[Record])

    async def forget(self) -> None:
        """Drop its records."""
        await self._control("DELETE", "records")

    async def obey(self, script: Script) -> None:
        """Follow another script."""
        await self._control("PUT", "script", msgspec.json.encode(script))

    async def _control(self, method: str, name: str, body: bytes = b"") -> bytes:
        async with HttpClient(self.server.url) as http:
            reply = await http.send(method, f"/_ctl/{name}", body)
        if reply.status != 200:
            raise LoadTestError(f"a fake does not obey: {reply.error or reply.status}", exit_code=1)
        return reply.body


@dataclass(frozen=True)
class Stand:
    """What runs."""

    gateway: Server
    policies: Sequence[Fake]
    rewards: Sequence[Fake]

    @property
    def policy(self) -> Fake:
        """The only policy replica, or the first."""
        return self.policies[0]

    @property
    def fakes(self) -> list[Fake]:
        """All of them."""
        return [*self.policies, *self.rewards]


@contextmanager
def stand(
    *policies: VllmScript, reward: RewardScript | None = None, flags: Sequence[str] = ()
) -> Iterator[Stand]:
    """Start fakes (a policy replica per script) and the gateway before them; this process is pinned too."""
    test_core, other_core = cores()
    with ExitStack() as running:
        running.enter_context(pinned(other_core))
        replicas = [running.enter_context(fake("vllm", script, other_core)) for script in policies]
        rewards = [] if reward is None else [running.enter_context(fake("reward", reward, other_core))]
        addresses = [word for replica in replicas for word in ("--policy-url", replica.server.url)]
        addresses += [word for judge in rewards for word in ("--reward-url", judge.server.url)]
        yield Stand(running.enter_context(gateway([*addresses, *flags], test_core)), replicas, rewards)


@contextmanager
def fake(kind: str, script: Script, core: int, port: int | None = None) -> Iterator[Fake]:
    """A fake by itself."""
    port = port or free_port()
    arguments = ["-m", "loadtests.fakes", kind, "--port", str(port)]
    arguments += ["--script", json.dumps(msgspec.to_builtins(script))]
    with server(arguments, url=f"http://127.0.0.1:{port}", ready="/health", core=core) as running:
        yield Fake(running)


@contextmanager
def gateway(flags: Sequence[str], core: int) -> Iterator[Server]:
    """The gateway by itself."""
    port = free_port()
    arguments = ["-m", "gateway", "--port", str(port), "--drain-delay", "0", *flags]
    with server(arguments, url=f"http://127.0.0.1:{port}", ready="/health/ready", core=core) as running:
        yield running
