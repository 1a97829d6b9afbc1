"""What a caller may ask for, and gets without asking: the API key's rules before the server's."""

from gateway.config import GatewayConfig
from gateway.intake import Terms
from gateway.keys import Key


def may_use(key: Key | None, model: str) -> bool:
    """Whether a caller may use the model of that name."""
    return key is None or not key.models or model in key.models


def terms(config: GatewayConfig, key: Key | None) -> Terms:
    """The caller's best_of: how many at most, and how many where it names none."""
    most, default = config.limits.max_best_of, config.default_best_of
    if key is not None:
        most = min(most, key.max_best_of or most)
        default = key.default_best_of or default
    if not config.rewards:
        default = 1  # a key's wish cannot be fulfilled where nothing can choose
    return Terms(default_best_of=min(default, most), max_best_of=most)
