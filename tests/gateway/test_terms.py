"""What a caller may ask for, by its key and by the configuration."""

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.config import GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.keys import Key
from gateway.terms import may_use, terms

POLICIES = (PolicyConfig(urls=("http://127.0.0.1:1",)),)
REWARDS = (RewardConfig(urls=("http://127.0.0.1:2",)),)
LIMITS = Limits(max_best_of=16)


def key(**fields: Any) -> Key:
    """A key with these rights."""
    return Key(id="k", name="k", sha256="0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), **fields)


@pytest.mark.parametrize(
    ("server", "rights", "default", "most"),
    [
        (1, None, 1, 16),
        (4, None, 4, 16),
        (4, {}, 4, 16),
        (4, {"default_best_of": 8}, 8, 16),
        (4, {"default_best_of": 1}, 1, 16),
        (4, {"max_best_of": 2}, 2, 2),
        (4, {"max_best_of": 64}, 4, 16),
        (1, {"default_best_of": 8, "max_best_of": 8}, 8, 8),
        (1, {"default_best_of": 32}, 16, 16),
    ],
)
def test_the_keys_rights_come_before_the_servers_and_never_beyond(
    server: int, rights: dict[str, Any] | None, default: int, most: int
) -> None:
    config = GatewayConfig(policies=POLICIES, rewards=REWARDS, limits=LIMITS, default_best_of=server)
    found = terms(config, None if rights is None else key(**rights))
    assert (found.default_best_of, found.max_best_of) == (default, most)


def test_nothing_is_chosen_by_default_where_nothing_can_choose() -> None:
    found = terms(GatewayConfig(policies=POLICIES, limits=LIMITS), key(default_best_of=8))
    assert found.default_best_of == 1


@pytest.mark.parametrize(
    ("caller", "model", "may"),
    [
        (None, "m", True),
        (key(), "m", True),
        (key(models=("m", "n")), "n", True),
        (key(models=("m",)), "M", False),
        (key(models=("m",)), "m:best-of-4", False),
    ],
)
def test_the_models_of_a_key(caller: Key | None, model: str, may: bool) -> None:
    assert may_use(caller, model) is may
