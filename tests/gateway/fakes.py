"""`FakePolicy` and `FakeReward`: what goes in at the gateway's two seams instead of a client."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import GatewayError
from gateway.policy import ChoiceDelta, Chunk, Usage
from gateway.rewards import Question, Verdict
from tests.gateway.fake_servers import MODEL, REWARD_MODEL, length_reward


@dataclass
class FakePolicy:
    """The seam to the policy, scripted as batches of chunks; an error in the script is raised."""

    script: Sequence[list[Chunk] | GatewayError | asyncio.Event] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0

    def open(self, path: str, body: dict[str, Any], request_id: str) -> Any:
        """Not for sampling tests."""
        raise AssertionError("this test samples only")

    async def sample(
        self, path: str, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[list[Chunk], None]:
        """Play the script."""
        self.bodies.append(body)
        try:
            for step in self.script:
                if isinstance(step, GatewayError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.closed += 1

    async def models(self) -> list[dict[str, Any]]:
        """One model."""
        return [{"id": MODEL}]

    async def ready(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """Nothing to close."""


def piece(
    index: int, text: str, finish_reason: str | None = "stop", tokens: int = 3, prompt_tokens: int = 5
) -> Chunk:
    """A chunk of a completion that holds one whole candidate."""
    choice = ChoiceDelta(index=index, text=text, finish_reason=finish_reason)
    return Chunk(choices=[choice], usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=tokens))


@dataclass
class FakeReward:
    """The seam to the reward model: rewards by text, else its length; an exception is raised."""

    rewards: Mapping[str, float | Exception | None] = field(default_factory=dict)
    gates: Mapping[str, asyncio.Event] = field(default_factory=dict)
    """A call that holds this text waits."""
    name: str | None = REWARD_MODEL
    calls: list[list[str]] = field(default_factory=list)
    cancelled: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def score(self, question: Question) -> Verdict:
        """Judge."""
        self.calls.append(list(question.responses))
        self.asked.set()
        try:
            for text in question.responses:
                if text in self.gates:
                    await self.gates[text].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        rewards = [self.rewards.get(text, length_reward(text)) for text in question.responses]
        for reward in rewards:
            if isinstance(reward, Exception):
                raise reward
        numbers = [None if reward is None else float(reward) for reward in rewards]  # type: ignore[arg-type]
        return Verdict(rewards=numbers, tokens=10 * len(numbers), model=self.name, version="v1")

    async def models(self) -> list[str]:
        """One model."""
        return [REWARD_MODEL]

    async def ready(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """Nothing to close."""
