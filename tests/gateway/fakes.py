"""`FakePolicy` and `FakeReward`: what goes in at the gateway's two seams instead of a client."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import GatewayError
from gateway.policy import Answer, Call, ChoiceDelta, Chunk, Usage
from gateway.rewards import Question, Verdict
from tests.gateway.fake_servers import MODEL, REWARD_MODEL, length_reward


@dataclass
class FakePolicy:
    """The seam to the policy, scripted as batches of chunks; an error in the script is raised."""

    script: Sequence[list[Chunk] | GatewayError | asyncio.Event] = ()
    more_scripts: Sequence[Sequence[list[Chunk] | GatewayError | asyncio.Event]] = ()
    """Of the calls after the first."""
    another: bool = False
    """Whether lost work may be sampled again."""
    budget_spent: int = 0
    """How often that was asked."""
    calls: list[Call] = field(default_factory=list)
    closed: int = 0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked for."""
        return [call.body for call in self.calls]

    async def fetch(self, call: Call) -> Answer:
        """Not for sampling tests."""
        raise AssertionError("this test samples only")

    def open(self, call: Call) -> Any:
        """Not for sampling tests."""
        raise AssertionError("this test samples only")

    async def sample(self, call: Call) -> AsyncGenerator[list[Chunk], None]:
        """Play the script."""
        script = [self.script, *self.more_scripts][len(self.calls)]
        self.calls.append(call)
        try:
            for step in script:
                if isinstance(step, GatewayError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.closed += 1

    def may_sample_again(self) -> bool:
        """As told."""
        self.budget_spent += 1
        return self.another

    async def models(self) -> list[dict[str, Any]]:
        """One model."""
        return [{"id": MODEL}]

    async def get(self, path: str) -> tuple[int, bytes]:
        """Nothing there."""
        return 404, b""

    async def start(self) -> None:
        """Nothing to start."""

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
        return Verdict(rewards=numbers, tokens=10 * len(numbers), model=REWARD_MODEL, version="v1")

    async def start(self) -> None:
        """Nothing to start."""

    async def ready(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """Nothing to close."""
