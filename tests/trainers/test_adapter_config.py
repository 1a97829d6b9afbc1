"""What is refused before anything is loaded."""

from typing import Any

import pytest

from trainers.adapter_config import AdapterConfig
from trainers.errors import ConfigError


def config(**settings: Any) -> AdapterConfig:
    return AdapterConfig(model_name_or_path="m", dataset_name="d", output_dir="o", **settings)


@pytest.mark.parametrize(
    "settings",
    [{"lora_r": 8}, {"lora_alpha": 8}, {"lora_target_modules": ["q_proj"]}, {"save_adapter": True}],
)
def test_what_means_nothing_without_an_adapter_is_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"--{name} goes with --use_peft"):
        config(**settings)
    assert getattr(config(use_peft=True, **settings), name) == settings[name]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora_r": 0}, "--lora_r must be at least 1, not 0"),
        ({"lora_alpha": 0}, "--lora_alpha must be at least 1, not 0"),
        ({"lora_target_modules": []}, "--lora_target_modules takes all-linear, or at least one name"),
        ({"lora_target_modules": ["q_proj", "all-linear"]}, "takes all-linear, or at least one name"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(use_peft=True, **settings)
