"""One version of one checkpoint: text in, raw logits out, with the time each step took.

    conversations -> token ids (the tokenizer's thread) -> engine -> logits

The engine is a Batcher, which computes here, or a VllmEngine, which asks a vLLM.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from rm_server.batcher import Scored
from rm_server.calibration import Calibration
from rm_server.errors import InvalidRequestError
from rm_server.metrics import Metrics
from rm_server.protocol import Conversation
from rm_server.tracing import current


class Formatter(Protocol):
    """The seam to the tokenizer; called in one thread."""

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Conversations -> token ids; raises InvalidRequestError where the template refuses one."""

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts that are already what the model should read -> token ids."""

    def encode_contents(self, texts: Sequence[str]) -> list[list[int]]:
        """What people wrote -> token ids, without any template and without control tokens."""


class Engine(Protocol):
    """The seam to whatever computes logits."""

    async def score(self, rows: Sequence[Sequence[int]]) -> Scored:
        """Raw logits of token ids. Raises RmServerError."""

    async def run(self) -> None:
        """Work until cancelled; nothing is scored without it."""

    async def ready(self) -> bool:
        """Whether it could score now."""


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
    calibration: Calibration | None = None


@dataclass
class Timings:
    """Seconds that one request spent where; zero where it never came."""

    queue_s: float = 0.0
    tokenize_s: float = 0.0
    infer_s: float = 0.0

    def cover(self, other: Timings) -> None:
        """Take in what went on at the same time: the longer counts."""
        self.queue_s = max(self.queue_s, other.queue_s)
        self.tokenize_s = max(self.tokenize_s, other.tokenize_s)
        self.infer_s = max(self.infer_s, other.infer_s)

    def header(self) -> str:
        """As a server-timing header, in milliseconds."""
        parts = (("queue", self.queue_s), ("tokenize", self.tokenize_s), ("infer", self.infer_s))
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts)


class ServedModel:
    """One version of one checkpoint: its card, its formatter and its engine."""

    def __init__(
        self, card: ModelCard, formatter: Formatter, engine: Engine, tokenizing: Executor, metrics: Metrics
    ) -> None:
        self.card = card
        self.engine = engine
        self._formatter = formatter
        self._tokenizing = tokenizing
        self._metrics = metrics

    async def encode(self, conversations: Sequence[Conversation], timings: Timings) -> list[list[int]]:
        """Token ids of conversations. Raises InvalidRequestError where the template refuses one."""
        return await self._encode(lambda: self._formatter.encode(conversations), timings)

    async def encode_rendered(self, texts: Sequence[str], timings: Timings) -> list[list[int]]:
        """Token ids of rendered texts, control tokens included."""
        return await self._encode(lambda: self._formatter.encode_rendered(texts), timings)

    async def count_tokens(self, texts: Sequence[str], timings: Timings) -> list[int]:
        """How many tokens each text is by itself, control tokens being text."""
        return list(map(len, await self._encode(lambda: self._formatter.encode_contents(texts), timings)))

    async def logits(self, rows: Sequence[Sequence[int]], timings: Timings) -> list[list[float]]:
        """Raw logits, rows x labels. Raises InvalidRequestError, also for a row that is too long,
        QueueFullError, ScoringFailedError."""
        self.check_ids(rows)
        about = {"gen_ai.request.model": self.card.name, "bonsai.model.version": self.card.version}
        with current().child("judge", {**about, "bonsai.texts": len(rows)}):
            scored = await self.engine.score(rows)
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

    def weigh(
        self, logits: Sequence[Sequence[float]], objectives: Mapping[str, float] | None
    ) -> list[float | None]:
        """Normalised rewards, one per row, None where one is not finite: sum_k weight_k (logit_k - offset)
        over the labels that `objectives` weighs; without it their mean."""
        labels = self.card.labels
        if objectives is None:
            objectives = dict.fromkeys(labels, 1 / len(labels))
        weights = [objectives.get(label, 0.0) for label in labels]
        return [_weigh(row, weights, self.card.reward_offset) for row in logits]

    async def _encode(self, encode: Callable[[], list[list[int]]], timings: Timings) -> list[list[int]]:
        started = time.perf_counter()
        try:
            with current().child("tokenize", {}):
                return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encode)
        finally:
            seconds = time.perf_counter() - started
            timings.tokenize_s += seconds
            self._metrics.tokenize_seconds.observe(seconds)


def _weigh(logits: Sequence[float], weights: Sequence[float], reward_offset: float) -> float | None:
    reward = sum(w * (logit - reward_offset) for w, logit in zip(weights, logits, strict=True) if w)
    return reward if math.isfinite(reward) else None
