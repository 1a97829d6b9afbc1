"""One piece of the candidates being sampled: a stream of chunks put together, and the tokens that it cost."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from gateway.candidates import Candidate
from gateway.errors import GatewayError
from gateway.pieces import Member, Piece
from gateway.policy import Call, Chunk, Policy, Usage

Finished = Callable[[int, Candidate], None]
"""Called with prompt and candidate the moment that it ends."""


@dataclass
class Sampling:
    """A request upstream and what came of it."""

    piece: Piece
    candidates: Sequence[Sequence[Candidate]]
    """By prompt."""
    usage: Usage = field(default_factory=Usage)
    """The server's sum over the piece, where it sent one."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    """By prompt, as far as it was counted candidate by candidate."""
    spent: dict[Member, int] = field(default_factory=dict)
    """Tokens received, by candidate."""
    system_fingerprint: str | None = None
    begun: bool = False
    """Whether anything has come."""
    error: GatewayError | None = None
    """Why it ended early."""

    async def run(self, policy: Policy, call: Call, finished: Finished, arrived: Callable[[], None]) -> None:
        """Sample until all is finished or the policy fails, which is remembered and not raised.

        Args:
            arrived: called after each batch of chunks.
        """
        try:
            async with aclosing(policy.sample(call)) as arrivals:
                async for chunks in arrivals:
                    self.begun = True
                    for chunk in chunks:
                        self._take(chunk, finished)
                    arrived()
        except GatewayError as error:
            self.error = error

    @property
    def lost(self) -> list[Member]:
        """Candidates without an end."""
        return [member for member in self.piece.members if self._candidate(member).finish_reason is None]

    @property
    def completion_tokens(self) -> int:
        """The server's own sum where it sent one; else the sum of what it counted candidate by candidate."""
        return max(self.usage.completion_tokens or 0, sum(self.spent.values()))

    def _take(self, chunk: Chunk, finished: Finished) -> None:
        self.system_fingerprint = chunk.system_fingerprint or self.system_fingerprint
        if not chunk.choices and chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            member = self.piece.members[choice.index]
            candidate = self._candidate(member)
            if candidate.finish_reason is not None:
                continue
            candidate.add(choice)
            if chunk.usage is not None and len(chunk.choices) == 1:
                self._count(member, candidate, chunk.usage)
            if candidate.finished:
                finished(member[0], candidate)

    def _count(self, member: Member, candidate: Candidate, usage: Usage) -> None:
        prompt = member[0]
        candidate.completion_tokens = usage.completion_tokens
        self.spent[member] = usage.completion_tokens or 0
        self.prompt_tokens[prompt] = max(self.prompt_tokens.get(prompt, 0), usage.prompt_tokens)

    def _candidate(self, member: Member) -> Candidate:
        return self.candidates[member[0]][member[1]]


async def all_of(runs: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all; a bug in one ends the others. Cancelled, it cancels them."""
    try:
        await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
