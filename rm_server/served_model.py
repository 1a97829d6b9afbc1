"""A model as requests meet it: text in, raw logits or normalised rewards out, with the time each step took.

    conversations -> token ids (the tokenizer's thread) -> batcher -> logits -> rewards

Rewards are normalised: raw logit - reward_offset. A checkpoint with several labels holds named objectives,
whose weighted sum is the reward; without weights every objective counts the same, and the weights sum to 1.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from rm_server.batcher import Batcher, Scored
from rm_server.errors import InvalidRequestError
from rm_server.metrics import Metrics
from rm_server.protocol import Conversation


class Formatter(Protocol):
    """The seam to the tokenizer; called in one thread."""

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Conversations -> token ids; raises InvalidRequestError where the template refuses one."""

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts that are already what the model should read -> token ids."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model before anything is asked of it."""

    name: str
    version: str
    verified: bool
    labels: Sequence[str]
    reward_offset: float
    max_length: int
    vocab_size: int


@dataclass
class Timings:
    """Seconds that one request spent where; zero where it never came."""

    queue_s: float = 0.0
    tokenize_s: float = 0.0
    infer_s: float = 0.0

    def header(self) -> str:
        """As a server-timing header, in milliseconds."""
        parts = (("queue", self.queue_s), ("tokenize", self.tokenize_s), ("infer", self.infer_s))
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts)


class ServedModel:
    """One checkpoint: its card, its formatter and its queue."""

    def __init__(
        self, card: ModelCard, formatter: Formatter, batcher: Batcher, tokenizing: Executor, metrics: Metrics
    ) -> None:
        self.card = card
        self.batcher = batcher
        self._formatter = formatter
        self._tokenizing = tokenizing
        self._metrics = metrics

    async def encode(self, conversations: Sequence[Conversation], timings: Timings) -> list[list[int]]:
        """Token ids of conversations. Raises InvalidRequestError, also for one that is too long."""
        return await self._encode(lambda: self._formatter.encode(conversations), timings)

    async def encode_rendered(self, texts: Sequence[str], timings: Timings) -> list[list[int]]:
        """Token ids of rendered texts, control tokens included. Raises InvalidRequestError."""
        return await self._encode(lambda: self._formatter.encode_rendered(texts), timings)

    async def logits(self, rows: Sequence[Sequence[int]], timings: Timings) -> list[list[float]]:
        """Raw logits, rows x labels. Raises QueueFullError, ScoringFailedError."""
        self.check_ids(rows)
        scored: Scored = await self.batcher.score(rows)
        timings.queue_s, timings.infer_s = scored.queue_s, scored.infer_s
        self._metrics.queue_seconds.observe(scored.queue_s)
        self._metrics.infer_seconds.observe(scored.infer_s)
        return scored.logits

    def check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Refuses rows that the model cannot read: empty, too long, or with ids that it does not have."""
        limit = self.card.max_length
        for index, ids in enumerate(rows):
            if len(ids) > limit:
                raise InvalidRequestError(
                    f"Conversation {index} is {len(ids)} tokens long, {len(ids) - limit} more than the "
                    f"{limit} that this model reads. Nothing is truncated.",
                    code="context_length_exceeded",
                )
            if not ids:
                raise InvalidRequestError(f"Conversation {index} is empty.", code="empty_conversation")
            if min(ids) < 0 or max(ids) >= self.card.vocab_size:
                raise InvalidRequestError(
                    f"Conversation {index} has an unknown token id.", code="unknown_token"
                )

    def rewards(
        self, logits: Sequence[Sequence[float]], objectives: Mapping[str, float] | None
    ) -> list[float | None]:
        """Normalised rewards, one per row; None where a logit is not finite. `objectives` were checked."""
        labels = self.card.labels
        if objectives is None:
            objectives = dict.fromkeys(labels, 1 / len(labels))
        weights = [objectives.get(label, 0.0) for label in labels]
        rewards = [weigh(row, weights, self.card.reward_offset) for row in logits]
        for reward in rewards:
            if reward is None:
                self._metrics.not_finite.labels(self.card.name).inc()
            else:
                self._metrics.scores.labels(self.card.name).observe(reward)
        return rewards

    def check_objectives(self, objectives: Mapping[str, float] | None) -> None:
        """Refuses weights for what this model does not have. Raises InvalidRequestError."""
        if objectives is not None and not (objectives and set(objectives) <= set(self.card.labels)):
            raise InvalidRequestError(
                f"This model's objectives are: {', '.join(self.card.labels)}",
                param="objectives",
                code="unknown_objective",
            )

    async def _encode(self, encode: Callable[[], list[list[int]]], timings: Timings) -> list[list[int]]:
        started = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encode)
        finally:
            timings.tokenize_s = time.perf_counter() - started
            self._metrics.tokenize_seconds.observe(timings.tokenize_s)


def weigh(logits: Sequence[float], weights: Sequence[float], reward_offset: float) -> float | None:
    """sum_k weight_k (logit_k - offset), over the objectives that count; None where that is not finite."""
    reward = sum(w * (logit - reward_offset) for w, logit in zip(weights, logits, strict=True) if w)
    return reward if math.isfinite(reward) else None
