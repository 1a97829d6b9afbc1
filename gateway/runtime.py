"""What a configuration came to be: clients, names, judges. Immutable but for its users; a reload builds
another one.

Requests hold the runtime that they began with. One that was replaced closes what its successor did not
take over as soon as the last of them has ended, so that a reload drops nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.catalog import Catalog, ServedPolicy
from gateway.config import GatewayConfig, PolicyConfig, RewardConfig
from gateway.control_text import ControlText
from gateway.errors import InvalidRequestError
from gateway.policy import Policy
from gateway.rewards import RewardModel

ConnectPolicy = Callable[[PolicyConfig], Policy]
ConnectReward = Callable[[RewardConfig], RewardModel]
Client = Policy | RewardModel


@dataclass(frozen=True)
class Judge:
    """A reward model at work."""

    config: RewardConfig
    client: RewardModel


class Runtime:
    """Everything that requests need of a configuration."""

    def __init__(
        self, config: GatewayConfig, policies: Sequence[ServedPolicy], judges: Sequence[Judge]
    ) -> None:
        self.config = config
        self.policies = policies
        self.judges = judges
        self.catalog = Catalog(policies)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    def build(
        cls,
        config: GatewayConfig,
        connect_policy: ConnectPolicy,
        connect_reward: ConnectReward,
        previous: "Runtime | None" = None,
    ) -> "Runtime":
        """Connect to what `previous` has no client for already.

        Raises:
            ConfigError: a client cannot be made of its settings.
        """
        policies = {policy.config: policy for policy in previous.policies} if previous else {}
        judges = {judge.config: judge for judge in previous.judges} if previous else {}
        return cls(
            config,
            [policies.get(part) or _serve(part, connect_policy) for part in config.policies],
            [judges.get(part) or Judge(part, connect_reward(part)) for part in config.rewards],
        )

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around what goes by this configuration, so that its clients stay open."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    def judge(self, name: str | None) -> Judge:
        """The reward model of that name; None is the default.

        Raises:
            InvalidRequestError: there is none of that name.
        """
        for judge in self.judges:
            if name is None or judge.config.name in {None, name}:
                return judge
        raise InvalidRequestError(
            "There is no reward model of this name here.",
            param="alignment.reward_model",
            code="reward_model_not_found",
        )

    async def start(self, previous: "Runtime | None" = None) -> None:
        """Begin to watch over the replicas of clients that are new."""
        for client in self._clients(except_those_of=previous):
            await client.start()

    async def retire(self, successor: "Runtime") -> None:
        """Wait until nobody uses this any more; then close the clients that `successor` does not use."""
        await self._unused.wait()
        await self.close(successor)

    async def close(self, successor: "Runtime | None" = None) -> None:
        """Close the clients that `successor` does not use."""
        for client in self._clients(except_those_of=successor):
            await client.close()

    async def missing(self) -> Mapping[str, Sequence[str]]:
        """Who does not answer, by kind: "policy" and "reward model"."""
        return {
            "policy": await _missing([(name_of(p.config), p.client) for p in self.policies]),
            "reward model": await _missing([(name_of(j.config), j.client) for j in self.judges]),
        }

    def _clients(self, except_those_of: "Runtime | None") -> list[Client]:
        kept = {id(client) for client in except_those_of._clients(None)} if except_those_of else set()
        clients: list[Client] = [policy.client for policy in self.policies]
        clients += [judge.client for judge in self.judges]
        return [client for client in clients if id(client) not in kept]


def _serve(config: PolicyConfig, connect: ConnectPolicy) -> ServedPolicy:
    return ServedPolicy(config, connect(config), ControlText(config.control_text))


def name_of(config: PolicyConfig | RewardConfig) -> str:
    """What operators know it by."""
    return config.name or config.urls[0]


async def _missing(parts: Sequence[tuple[str, Client]]) -> list[str]:
    answers = await asyncio.gather(*(client.ready() for _, client in parts))
    return [name for (name, _), ready in zip(parts, answers, strict=True) if not ready]
