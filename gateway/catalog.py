"""Which model names there are, and where each leads. Names that the configuration gives are known from the
start; a policy without one is known by the names that its servers list, learnt from them and remembered."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config import PolicyConfig
from gateway.control_text import ControlText
from gateway.errors import GatewayError, NotFoundError, UpstreamError
from gateway.policy import Policy
from gateway.protocol import split_model

REFRESH_S = 1.0
"""At most one look per second: unknown names must not become a load on the policies."""
LISTED_BEST_OF = (4, 8, 16)
"""`NAME:best-of-N` works for any N; these are listed, for clients that pick from the list."""


@dataclass(eq=False)
class ServedPolicy:
    """A policy at work."""

    config: PolicyConfig
    client: Policy
    control_text: ControlText


@dataclass(frozen=True)
class Route:
    """Where a model name leads."""

    policy: ServedPolicy
    name: str
    """The name, as configured or listed by the policy: a metric's label."""
    model: str
    """Its name upstream."""


class Catalog:
    """The models of all policies. The first is the default."""

    def __init__(self, policies: Sequence[ServedPolicy]) -> None:
        self._policies = policies
        self._configured = {
            name: Route(policy, name, policy.config.model or policy.config.names[0])
            for policy in policies
            for name in policy.config.names
        }
        self._all_configured = all(policy.config.names for policy in policies)
        self._listed: dict[int, list[Route]] = {}
        self._known = self._configured
        self._failure: GatewayError | None = None
        """Why it is not known which names a policy has."""
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def find(self, model: str | None) -> tuple[Route, int | None]:
        """Where a name leads, and the best_of in its suffix; None is the default model.

        Raises:
            NotFoundError: no such model.
            GatewayError: a policy would have to be asked for its models, and does not tell.
        """
        found = self._find(model)
        if found is None and not self._all_configured:
            await self._refresh()
            found = self._find(model)
        if found is not None:
            return found
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        raise not_served()

    async def cards(self, most_best_of: int, may_use: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Every model as `/v1/models` lists it, then its variants up to `most_best_of`; only names that
        `may_use` allows.

        Raises:
            GatewayError: nothing is known, and nobody answers.
        """
        listed = await self._look()
        if self._failure is not None and not self._known:
            raise self._failure
        by_model = {
            (id(policy), card["id"]): card
            for policy, cards in zip(self._policies, listed, strict=True)
            for card in cards
        }
        plain = [
            {**_minimal(route), **by_model.get((id(route.policy), route.model), {}), "id": route.name}
            for route in self._known.values()
            if may_use(route.name)
        ]
        numbers = [number for number in LISTED_BEST_OF if number <= most_best_of]
        variants = [_variant(card, number) for card in plain for number in numbers]
        return plain + variants

    async def card(self, model: str, most_best_of: int, may_use: Callable[[str], bool]) -> dict[str, Any]:
        """One model's card, under the name that was asked for.

        Raises:
            NotFoundError: no such model, no variant that could be asked for, or `may_use` does not allow it.
        """
        base, number = split_model(model)
        for card in await self.cards(1, may_use):
            if card["id"] == model:
                return card
            if card["id"] == base and number is not None and 1 <= number <= most_best_of:
                return _variant(card, number)
        raise not_served()

    def _find(self, model: str | None) -> tuple[Route, int | None] | None:
        if model is None:
            default = self._default()
            return None if default is None else (default, None)
        if model in self._known:
            return self._known[model], None
        base, number = split_model(model)
        return (self._known[base], number) if base in self._known else None

    def _default(self) -> Route | None:
        names = self._policies[0].config.names
        if names:
            return self._configured[names[0]]
        listed = self._listed.get(0)
        return listed[0] if listed else None

    async def _refresh(self) -> None:
        """Look, unless somebody has just looked: who waited meanwhile goes by what that one saw."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() - self._looked_at >= REFRESH_S:
                await self._look()
                self._looked_at = loop.time()

    async def _look(self) -> list[list[dict[str, Any]]]:
        """Ask every policy for its cards and learn from those that must be asked. One that is down costs the
        others nothing."""
        answers = await asyncio.gather(*map(_cards_of, self._policies))
        self._failure = None
        for position, answer in enumerate(answers):
            if self._policies[position].config.names:
                continue
            if not isinstance(answer, GatewayError):
                self._learn(position, answer)
            elif position not in self._listed:
                self._failure = self._failure or answer
        return [[] if isinstance(answer, GatewayError) else answer for answer in answers]

    def _learn(self, position: int, cards: list[dict[str, Any]]) -> None:
        policy = self._policies[position]
        self._listed[position] = [Route(policy, card["id"], card["id"]) for card in cards]
        listed: dict[str, Route] = {}
        for _, routes in sorted(self._listed.items()):
            for route in routes:
                listed.setdefault(route.name, route)  # of two policies with one name the first has it
        self._known = listed | self._configured


def not_served() -> NotFoundError:
    """The answer to a name that nobody has, or that is not for this client."""
    return NotFoundError("This model is not served here.", param="model", code="model_not_found")


async def _cards_of(policy: ServedPolicy) -> list[dict[str, Any]] | GatewayError:
    try:
        cards = await policy.client.models()
    except GatewayError as error:
        return error
    if not cards and not policy.config.names:
        return UpstreamError("The policy server serves no model.")
    return cards


def _minimal(route: Route) -> dict[str, Any]:
    return {"id": route.name, "object": "model", "created": 0, "owned_by": "bonsai", "root": route.model}


def _variant(card: dict[str, Any], best_of: int) -> dict[str, Any]:
    return {**card, "id": f"{card['id']}:best-of-{best_of}", "parent": card["id"]}
