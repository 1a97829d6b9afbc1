"""The seam to what judges: the `RewardModel` that the rest of the gateway knows, its questions and verdicts.

`gateway.reward_clients` has the real ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import InvalidRequestError

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a reward model is asked: how good is each of `responses` after `messages`?"""

    messages: Messages
    responses: Sequence[str]
    model: str | None = None
    ensemble: str | None = None
    objectives: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Rewards in the order of the question's responses; None where there is none."""

    rewards: Sequence[float | None]
    tokens: int = 0
    model: str | None = None
    version: str | None = None
    out_of_distribution: Sequence[bool | float | None] | None = None
    """Per response, where the server reports it."""
    spread: Sequence[float | None] | None = None
    """Per response, how far the members of an ensemble are apart, where the server has one."""


class TooLongError(InvalidRequestError):
    """The question holds more than the reward model can read."""

    code = "context_length_exceeded"


class RewardModel(Protocol):
    """What judges."""

    async def score(self, question: Question) -> Verdict:
        """Judge; raises TooLongError, InvalidRequestError or RewardError. Cancelling it aborts the call."""

    async def ready(self) -> bool:
        """Whether it can judge now."""

    async def start(self) -> None:
        """Begin to watch over its replicas."""

    async def close(self) -> None:
        """Give connections back."""
