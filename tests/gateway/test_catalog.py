"""Which names lead where: configured, listed by policies, with a suffix; and policies that do not answer."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.catalog import Catalog, Route, ServedPolicy
from gateway.config import PolicyConfig
from gateway.control_text import ControlText
from gateway.errors import GatewayError, NotFoundError, UpstreamError, UpstreamUnavailableError
from tests.gateway.fakes import FakePolicy

DOWN = UpstreamUnavailableError("down")


@dataclass
class Lister(FakePolicy):
    """A policy that lists these models, or fails."""

    listing: list[str] | GatewayError = field(default_factory=list)
    asked: int = 0

    async def models(self) -> list[dict[str, Any]]:
        """Not at once, as over a network."""
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.listing, GatewayError):
            raise self.listing
        return [{"id": name, "owned_by": "vllm"} for name in self.listing]


def served(listing: list[str] | GatewayError, **config: Any) -> ServedPolicy:
    """A policy behind the catalog."""
    settings = PolicyConfig(urls=("http://127.0.0.1:1",), **config)
    return ServedPolicy(settings, Lister(listing=listing), ControlText("allow"))


def asked(policy: ServedPolicy) -> int:
    """How often its models were asked for."""
    assert isinstance(policy.client, Lister)
    return policy.client.asked


def anyone(_: str) -> bool:
    """Nobody is refused a model."""
    return True


async def names(catalog: Catalog, most_best_of: int = 1) -> list[str]:
    """What /v1/models would list."""
    return [card["id"] for card in await catalog.cards(most_best_of, anyone)]


async def test_configured_names_and_aliases_lead_to_the_served_model_and_ask_nobody() -> None:
    policy = served(DOWN, name="chat", aliases=("gpt-4o",), model="org/model-7b")
    catalog = Catalog([policy])
    for name, best_of, found in [
        ("chat", None, "chat"),
        ("gpt-4o", None, "gpt-4o"),
        ("gpt-4o:best-of-8", 8, "gpt-4o"),
        (None, None, "chat"),
    ]:
        assert await catalog.find(name) == (Route(policy, found, "org/model-7b"), best_of)
    for unknown in ["org/model-7b", "chat:best-of-", "Chat", ""]:
        with pytest.raises(NotFoundError):
            await catalog.find(unknown)
    assert asked(policy) == 0


async def test_names_are_learnt_from_who_has_none() -> None:
    first, second = served(["a", "both"]), served(["b", "both", "named"])
    named = served(["upstream"], name="named")
    catalog = Catalog([first, second, named])
    found = {name: (await catalog.find(name))[0].policy for name in ["a", "b", "both", "named"]}
    assert found == {"a": first, "b": second, "both": first, "named": named}
    assert (await catalog.find(None))[0].name == "a"
    assert await catalog.find("b:best-of-4") == (Route(second, "b", "b"), 4)


async def test_unknown_names_are_no_load_on_the_policies() -> None:
    policy = served(["a"])
    catalog = Catalog([policy])
    answers = await asyncio.gather(*(catalog.find(f"x{i}") for i in range(50)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {NotFoundError}
    assert asked(policy) == 1


@pytest.mark.parametrize("trouble", [DOWN, UpstreamError("nonsense"), []])
async def test_a_policy_that_tells_nothing_is_asked_once_for_a_crowd(trouble: Any) -> None:
    policy = served(trouble)
    catalog = Catalog([policy])
    answers = await asyncio.gather(*(catalog.find("a") for _ in range(50)), return_exceptions=True)
    kind = UpstreamUnavailableError if trouble is DOWN else UpstreamError
    assert {type(answer) for answer in answers} == {kind}
    assert asked(policy) == 1
    with pytest.raises(kind):
        await catalog.cards(1, anyone)


async def test_who_gives_up_first_leaves_the_others_their_answer() -> None:
    catalog = Catalog([served(["a"])])
    first, second = (asyncio.create_task(catalog.find("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].name == "a"


@pytest.mark.parametrize("trouble", [DOWN, []])
async def test_a_policy_that_tells_nothing_costs_the_others_nothing(trouble: Any) -> None:
    silent, well, named = served(trouble), served(["b"]), served(DOWN, name="c")
    catalog = Catalog([silent, well, named])
    assert (await catalog.find("b"))[0].policy is well
    assert sorted(await names(catalog)) == ["b", "c"]


@pytest.mark.parametrize("model", [None, "perhaps-its"])
async def test_a_model_that_may_be_the_silent_policys_is_not_said_to_be_unknown(model: str | None) -> None:
    silent, named = served(DOWN), served(["c"], name="c")
    catalog = Catalog([silent, named])
    with pytest.raises(UpstreamUnavailableError):
        await catalog.find(model)


async def test_a_policy_that_is_gone_keeps_its_names() -> None:
    policy = served(["a"])
    catalog = Catalog([policy])
    await catalog.find("a")
    assert isinstance(policy.client, Lister)
    policy.client.listing = DOWN
    assert await names(catalog) == ["a"]
    assert (await catalog.find("a"))[0].policy is policy


async def test_cards_are_the_policys_own_under_our_names_with_their_variants() -> None:
    policy = served(["org/m"], name="chat", aliases=("gpt",), model="org/m")
    catalog = Catalog([policy])
    assert await names(catalog, 8) == [
        *("chat", "gpt"),
        *("chat:best-of-4", "chat:best-of-8", "gpt:best-of-4", "gpt:best-of-8"),
    ]
    card = await catalog.card("gpt", 8, anyone)
    assert (card["id"], card["owned_by"], card["root"]) == ("gpt", "vllm", "org/m")
    variant = await catalog.card("chat:best-of-3", 8, anyone)
    assert (variant["id"], variant["parent"]) == ("chat:best-of-3", "chat")
    for impossible in ("chat:best-of-0", "chat:best-of-9"):
        with pytest.raises(NotFoundError):
            await catalog.card(impossible, 8, anyone)
    assert await catalog.cards(8, lambda _: False) == []
    for hidden in ["chat", "chat:best-of-4", "other"]:
        with pytest.raises(NotFoundError):
            await catalog.card(hidden, 8, lambda name: name == "gpt")
