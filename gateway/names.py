"""The policy's model names, learnt from the policy and remembered."""

import asyncio
from typing import Any

from gateway.errors import NotFoundError, UpstreamError
from gateway.policy import Policy
from gateway.protocol import split_model

REFRESH_S = 1.0
"""At most one look per second: unknown names must not become a load on the policy."""


class Names:
    """Which models exist, by name. The first card is the default where the configuration names none."""

    def __init__(self, policy: Policy, default: str | None) -> None:
        self._policy = policy
        self._default = default
        self._known = {default: default, "": default} if default is not None else {}
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    @property
    def known(self) -> dict[str, str]:
        """What clients may say -> the name upstream; "" is the default model."""
        return self._known

    async def lookup(self, model: str | None) -> dict[str, str]:
        """The known names, after making sure that `model` (or its name without a suffix) is among them.

        Raises:
            NotFoundError: it is not served.
            UpstreamUnavailableError: the policy cannot be asked.
        """
        if not self._has(model):
            await self._refresh()
            if not self._has(model):
                raise _not_served()
        return self._known

    async def cards(self) -> list[dict[str, Any]]:
        """The policy's model cards, fresh."""
        cards = await self._policy.models()
        self._learn(cards)
        return cards

    async def card(self, model: str) -> dict[str, Any]:
        """One model's card, under the name that was asked for; `NAME:best-of-8` exists where NAME does.

        Raises:
            NotFoundError: it is not served.
        """
        wanted = (model, split_model(model)[0])
        for card in await self.cards():
            if card["id"] in wanted:
                return {**card, "id": model}
        raise _not_served()

    def _has(self, model: str | None) -> bool:
        if not model:
            return model is None and "" in self._known
        return model in self._known or split_model(model)[0] in self._known

    async def _refresh(self) -> None:
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now - self._looked_at < REFRESH_S:
                return
            await self.cards()
            self._looked_at = now

    def _learn(self, cards: list[dict[str, Any]]) -> None:
        names = [card["id"] for card in cards]
        if not names and self._default is None:
            raise UpstreamError("The policy server serves no model.")
        default = self._default if self._default is not None else names[0]
        self._known = {name: name for name in [default, *names]} | {"": default}


def _not_served() -> NotFoundError:
    return NotFoundError("This model is not served here.", param="model", code="model_not_found")


def label(known: dict[str, str], model: object) -> str:
    """The model's metric label: a served name, or "other"."""
    if model is None:
        return known.get("", "other")
    if not isinstance(model, str) or model == "":
        return "other"
    return known.get(model) or known.get(split_model(model)[0], "other")
