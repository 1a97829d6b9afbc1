"""What the gateway's `alignment` record says of an answer, as far as reports count it (docs/api.md)."""

from collections.abc import Sequence

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens: of what was returned, and of all candidates."""

    selected_completion_tokens: int = 0
    all_completion_tokens: int = 0


class Alignment(msgspec.Struct, frozen=True, kw_only=True):
    """One request's record."""

    method: str = ""
    best_of: int = 1
    scored: int = 0
    rewards: Sequence[float | None] = ()
    """Of the choices, in order."""
    reward_mean: float | None = None
    """Of all candidates that were scored."""
    usage: Usage = Usage()
    degraded: str | None = None

    @property
    def reward(self) -> float | None:
        """Of the first choice."""
        return self.rewards[0] if self.rewards else None

    @property
    def gain(self) -> float | None:
        """Of the first choice over the mean of the candidates."""
        if self.reward is None or self.reward_mean is None:
            return None
        return self.reward - self.reward_mean
