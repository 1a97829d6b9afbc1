"""What a name in a request stands for: one model, or several as an ensemble, and what is known of its scores.

    material -> each member: token ids -> logits -> rewards -> one reward, the spread, the doubt

Rewards are normalised: raw logit - reward_offset. A checkpoint with several labels holds named objectives,
whose weighted sum is the reward; without weights every objective counts the same, and the weights sum to 1.
Members of an ensemble are several models; where there is one with several labels, these can be taken for
members instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rm_server.calibration import Calibration
from rm_server.drift import Drift
from rm_server.ensemble import UNCERTAINTY_LAMBDA, Method, combine, spread
from rm_server.errors import InvalidRequestError
from rm_server.metrics import Metrics
from rm_server.protocol import Conversation
from rm_server.served_model import ServedModel, Timings
from rm_server.together import together

Rewards = list[float | None]


@dataclass(frozen=True)
class Material:
    """What is to be judged, in one of three forms."""

    conversations: Sequence[Conversation] = ()
    texts: Sequence[str] = ()
    """Rendered already."""
    ids: Sequence[Sequence[int]] = ()

    async def rows(self, model: ServedModel, timings: Timings) -> Sequence[Sequence[int]]:
        """Token ids of the model's tokenizer."""
        if self.conversations:
            return await model.encode(self.conversations, timings)
        if self.texts:
            return await model.encode_rendered(self.texts, timings)
        return self.ids


@dataclass(frozen=True)
class Wish:
    """How the rewards of members and labels are to become one."""

    method: Method | None = None
    objectives: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Judgement:
    """Rewards in the order of the material, and what they are made of. `tokens` were read by all members
    together. Where there is nothing to say of spread and doubt, these are None.
    """

    scores: Rewards
    members: Mapping[str, Rewards]
    tokens: int
    spread: Rewards | None = None
    percentiles: Rewards | None = None
    out_of_distribution: list[bool | None] | None = None


@dataclass(frozen=True)
class Options:
    """What holds where a request says nothing."""

    method: Method = "mean"
    uncertainty_lambda: float = UNCERTAINTY_LAMBDA


class Judge:
    """One name, as it stands at this moment: a reload makes another judge."""

    def __init__(
        self,
        name: str,
        members: Mapping[str, ServedModel],
        metrics: Metrics,
        options: Options | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.name = name
        self.members = members
        self.calibration = calibration
        self._metrics = metrics
        self._options = options or Options()
        self._usual: Method = self._options.method if len(members) > 1 else "mean"
        known = calibration.scores.get(self._usual) if calibration else None
        # There at once: an alert sees no step to 1 from nowhere.
        self._not_finite = metrics.not_finite.labels(name)
        self._out_of_distribution = metrics.out_of_distribution.labels(name) if calibration else None
        self._drift = Drift(name, known, metrics) if known else None

    @property
    def first(self) -> ServedModel:
        """The member that speaks for all where they are alike."""
        return next(iter(self.members.values()))

    @property
    def labels(self) -> Sequence[str]:
        """The same of every member."""
        return self.first.card.labels

    @property
    def logit_labels(self) -> Sequence[str]:
        """What `logits` has a column for."""
        return self.labels if len(self.members) == 1 else [self.name]

    @property
    def version(self) -> str:
        """The members' versions, in order."""
        return "+".join(model.card.version for model in self.members.values())

    @property
    def max_length(self) -> int:
        """What every member can read."""
        return min(model.card.max_length for model in self.members.values())

    def check(self, wish: Wish) -> None:
        """Refuses what this judge does not have. Raises InvalidRequestError."""
        if wish.objectives is not None and not (wish.objectives and {*wish.objectives} <= {*self.labels}):
            raise InvalidRequestError(
                f"This model's objectives are: {', '.join(self.labels)}",
                param="objectives",
                code="unknown_objective",
            )
        if wish.method is None or len(self.members) > 1:
            return
        if len(self.labels) == 1:
            raise InvalidRequestError(
                "This model is no ensemble: it has one member and one label",
                param="ensemble",
                code="not_an_ensemble",
            )
        if wish.objectives is not None:
            raise InvalidRequestError(
                "This model's labels are either weighed as objectives or combined as an ensemble, not both",
                param="ensemble",
                code="not_an_ensemble",
            )

    async def judge(self, material: Material, wish: Wish, timings: Timings) -> Judgement:
        """Raises what `check` and the members raise."""
        self.check(wish)
        rows, logits = await self._logits(material, timings)
        tokens = sum(len(ids) for member in rows for ids in member)
        members = self._members(logits, wish)
        method, spreads = self._usual, None
        if len(self.members) > 1 or wish.method is not None:
            method = wish.method or self._usual
            columns = list(zip(*members.values(), strict=True))
            scores = [combine(column, method, self._options.uncertainty_lambda) for column in columns]
            spreads = [spread(column) for column in columns]
            self._observe_spreads(spreads)
        else:
            scores = self.first.weigh(logits[0], wish.objectives)
        self._observe(scores, drifting=method == self._usual and wish.objectives is None)
        judgement = Judgement(scores, members, tokens, spreads)
        return judgement if wish.objectives else self._doubted(judgement, method)

    async def logits(self, material: Material, timings: Timings) -> tuple[list[list[float]], int]:
        """Raw logits, rows x labels, and how many tokens were read; of an ensemble, which has no logits of
        its own, its reward by its own method, as one label."""
        if len(self.members) > 1:
            judgement = await self.judge(material, Wish(), timings)
            return [[float("nan") if s is None else s] for s in judgement.scores], judgement.tokens
        rows, logits = await self._logits(material, timings)
        return logits[0], sum(map(len, rows[0]))

    async def _logits(
        self, material: Material, timings: Timings
    ) -> tuple[list[Sequence[Sequence[int]]], list[list[list[float]]]]:
        """Token ids and logits of every member, who work at the same time."""

        async def one(model: ServedModel) -> tuple[Sequence[Sequence[int]], list[list[float]]]:
            own = Timings()
            try:
                rows = await material.rows(model, own)
                return rows, await model.logits(rows, own)
            finally:
                timings.cover(own)

        done = await together(one(model) for model in self.members.values())
        return [rows for rows, _ in done], [logits for _, logits in done]

    def _members(self, logits: Sequence[list[list[float]]], wish: Wish) -> dict[str, Rewards]:
        """Rewards by member: the models, or the labels of the only one."""
        if len(self.members) == 1 and len(self.labels) > 1:
            return {label: self.first.weigh(logits[0], {label: 1.0}) for label in self.labels}
        return {
            name: model.weigh(rows, wish.objectives)
            for (name, model), rows in zip(self.members.items(), logits, strict=True)
        }

    def _doubted(self, judgement: Judgement, method: Method) -> Judgement:
        """With where its scores lie, which calibration tells of rewards that no request weighed."""
        if self.calibration is None:
            return judgement
        scores = judgement.scores
        spreads = judgement.spread or [None] * len(scores)
        doubts = self.calibration.doubts(method, scores, spreads)
        if doubts and self._out_of_distribution:
            self._out_of_distribution.inc(doubts.count(True))
        return replace(
            judgement, percentiles=self.calibration.levels(method, scores), out_of_distribution=doubts
        )

    def _observe_spreads(self, spreads: Rewards) -> None:
        for found in spreads:
            if found is not None:
                self._metrics.spread.labels(self.name).observe(found)

    def _observe(self, scores: Rewards, *, drifting: bool) -> None:
        for score in scores:
            if score is None:
                self._not_finite.inc()
                continue
            self._metrics.scores.labels(self.name).observe(score)
            if self._drift and drifting:
                self._drift.note(score)
