"""`POST /score`, from the parsed request to the answer: whose rewards, how weighed, less what for length.

`objectives` weighs the labels of the model that is asked, or else models of this server by their names:

    score = sum_k weight_k reward_k - length_penalty x (tokens of the response)

The tokens of a response are those of the last turn's content by itself, without the template's, in the
tokenizer of the (first) model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rm_server.errors import InvalidRequestError
from rm_server.judge import Judge, Judgement, Material, Rewards, Wish
from rm_server.protocol import Conversation, ScoreAnswer, ScoreRequest
from rm_server.served_model import Timings
from rm_server.shelf import Shelf
from rm_server.together import together


@dataclass(frozen=True)
class Plan:
    """Whom to ask, for what, and how much each counts; without weights there is one judge."""

    judges: Sequence[Judge]
    wish: Wish
    weights: Mapping[str, float] | None = None


async def score(
    request: ScoreRequest, shelf: Shelf, timings: Timings, *, length_penalty: float
) -> ScoreAnswer:
    """`length_penalty` is what holds where the request says nothing. Raises RmServerError."""
    conversations = request.to_conversations()
    plan = make_plan(request, shelf)
    if request.length_penalty is not None:
        length_penalty = request.length_penalty
    with shelf.lend(*plan.judges):
        judgement = await _judge(plan, Material(conversations), timings)
        if length_penalty:
            tokens = await _response_tokens(plan.judges[0], conversations, timings)
            judgement = replace(judgement, scores=_shortened(judgement.scores, tokens, length_penalty))
    return _answer(request, plan, judgement)


def make_plan(request: ScoreRequest, shelf: Shelf) -> Plan:
    """Raises NotFoundError, InvalidRequestError."""
    judge = shelf.current(request.model)
    wish = Wish(request.ensemble, request.objectives)
    if not request.objectives or {*request.objectives} <= {*judge.labels}:
        judge.check(wish)
        return Plan([judge], wish)
    if not {*request.objectives} <= {*shelf.names()}:
        raise InvalidRequestError(
            f"Objectives here are labels of the model ({', '.join(judge.labels)}) or models of this server "
            f"({', '.join(shelf.names())})",
            param="objectives",
            code="unknown_objective",
        )
    judges = [shelf.current(name) for name in request.objectives]
    for each in judges:
        each.check(Wish(request.ensemble))
    return Plan(judges, Wish(request.ensemble), request.objectives)


async def _judge(plan: Plan, material: Material, timings: Timings) -> Judgement:
    if plan.weights is None:
        return await plan.judges[0].judge(material, plan.wish, timings)
    own = [Timings() for _ in plan.judges]
    found = await together(
        judge.judge(material, plan.wish, times) for judge, times in zip(plan.judges, own, strict=True)
    )
    for times in own:
        timings.cover(times)
    return weigh(dict(zip(plan.weights, found, strict=True)), plan.weights)


def weigh(judgements: Mapping[str, Judgement], weights: Mapping[str, float]) -> Judgement:
    """The weighted sum of several models' rewards. A response is doubtful where one of them doubts it."""
    columns = list(zip(*(judgement.scores for judgement in judgements.values()), strict=True))
    doubts = [judgement.out_of_distribution for judgement in judgements.values()]
    known = [doubt for doubt in doubts if doubt is not None]
    return Judgement(
        scores=[_sum(column, list(weights.values())) for column in columns],
        members={name: judgement.scores for name, judgement in judgements.items()},
        tokens=sum(judgement.tokens for judgement in judgements.values()),
        out_of_distribution=[any(column) for column in zip(*known, strict=True)] if known else None,
    )


def _sum(rewards: Sequence[float | None], weights: Sequence[float]) -> float | None:
    total = 0.0
    for reward, weight in zip(rewards, weights, strict=True):
        if reward is None:
            return None
        total += weight * reward
    return total if math.isfinite(total) else None


async def _response_tokens(
    judge: Judge, conversations: Sequence[Conversation], timings: Timings
) -> list[int]:
    return await judge.first.count_tokens([turns[-1]["content"] for turns in conversations], timings)


def _shortened(scores: Rewards, tokens: Sequence[int], length_penalty: float) -> Rewards:
    return [
        None if score is None else score - length_penalty * count
        for score, count in zip(scores, tokens, strict=True)
    ]


def _answer(request: ScoreRequest, plan: Plan, judgement: Judgement) -> ScoreAnswer:
    return ScoreAnswer(
        model="+".join(judge.name for judge in plan.judges),
        version="+".join(judge.version for judge in plan.judges),
        scores=judgement.scores,
        usage={"tokens": judgement.tokens},
        members=judgement.members if request.return_members else None,
        spread=judgement.spread,
        percentiles=judgement.percentiles,
        out_of_distribution=judgement.out_of_distribution,
    )
