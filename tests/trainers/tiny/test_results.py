"""Claims hold or fail by the figures, and results.json has the contract's form."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainers.intervals import Mean
from trainers.tiny import results
from trainers.tiny.evaluate import Agreement
from trainers.tiny.results import (
    ALIGNED,
    BEST_OF,
    CLAIMED,
    GAINS,
    GOLD_ORDER_GOAL,
    NOISY_LABEL_GOAL,
    POLICIES,
    Cell,
    Results,
)

PROMPTS = 42
LADDER: Mapping[Cell, float] = {
    (policy, best_of): 0.5 * p + 0.2 * b
    for p, policy in enumerate(POLICIES)
    for b, best_of in enumerate(BEST_OF)
}
"""Every policy is 0.5 above the one before, every best_of 0.2 above the one before."""


def rewards(**changes: float) -> dict[Cell, list[float]]:
    """Rewards by prompt around the ladder; prompts differ much, and each cell wobbles a little by itself."""
    return {
        cell: [
            changes.get(f"{cell[0]}_{cell[1]}", level) + n / 10 + 0.05 * ((n + at) % 7 - 3)
            for n in range(PROMPTS)
        ]
        for at, (cell, level) in enumerate(LADDER.items())
    }


def measured(gold_order: float = 0.9, noisy: float = 0.8, **changes: float) -> Results:
    agreement = Agreement(gold_order=gold_order, noisy_labels=noisy, pairs=123)
    kl = {policy: Mean(2.5, (2.0, 3.0)) for policy in ALIGNED}
    seconds = {"data": 1.5, "sft": 20.0}
    return results.summarize(rewards(**changes), agreement, 0.85, kl, seconds, 3 * 2**30)


def failed(found: Results) -> list[str]:
    return [claim.text for claim in found.claims() if not claim.holds]


def test_all_claims_hold_on_a_clear_ladder() -> None:
    assert failed(measured()) == []
    assert len(measured().claims()) == len(CLAIMED) + 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"base_1": 0.5}, CLAIMED["sft-base"]),  # as good as SFT
        ({"dpo_1": 0.5}, CLAIMED["dpo-sft"]),
        ({"dpo_1": 0.4}, CLAIMED["dpo-sft"]),  # worse
        ({"ppo_1": 0.5}, CLAIMED["ppo-sft"]),
        ({"sft_4": 0.5, "sft_16": 0.9}, CLAIMED["sft best_of 4-1"]),
        ({"sft_16": 0.7}, CLAIMED["sft best_of 16-4"]),
    ],
)
def test_a_gain_that_is_not_clear_fails_its_claim_alone(change: dict[str, float], text: str) -> None:
    assert failed(measured(**change)) == [text]


def test_the_reward_models_claims_are_goals_to_be_reached() -> None:
    assert failed(measured(gold_order=GOLD_ORDER_GOAL, noisy=NOISY_LABEL_GOAL)) == []
    (gold,) = failed(measured(gold_order=GOLD_ORDER_GOAL - 1e-6))
    (noisy,) = failed(measured(noisy=NOISY_LABEL_GOAL - 1e-6))
    assert "gold order" in gold
    assert "noisy labels" in noisy


def test_gains_are_paired_by_prompt() -> None:
    found = measured()
    after, before = GAINS["dpo-sft"]
    figures = rewards()
    differences = [a - b for a, b in zip(figures[after], figures[before], strict=True)]
    assert found.gains["dpo-sft"].mean == pytest.approx(sum(differences) / PROMPTS)
    width = found.gains["dpo-sft"].ci95[1] - found.gains["dpo-sft"].ci95[0]
    unpaired = found.gold[after].ci95[1] - found.gold[after].ci95[0]
    assert width < unpaired / 2  # prompts differ more than policies


def test_the_best_of_gain_on_dpo_is_shown_and_not_claimed() -> None:
    assert set(GAINS) - set(CLAIMED) == {"dpo best_of 16-1"}
    assert failed(measured(dpo_16=0.0)) == []


def test_results_json_has_the_contracts_form() -> None:
    content = json.loads(json.dumps(measured().as_json()))
    contract = {"gold_reward", "paired_gain", "reward_model", "seconds", "peak_memory_bytes"}
    assert set(content) == contract | {"kl_nats_per_sequence"}
    assert set(content["gold_reward"]) == {"base", "sft", "dpo", "ppo"}
    assert content["kl_nats_per_sequence"]["ppo"] == {"mean": 2.5, "ci95": [2.0, 3.0]}
    for by_best_of in content["gold_reward"].values():
        assert set(by_best_of) == {"1", "4", "16"}
        for cell in by_best_of.values():
            check_mean(cell, {"mean", "ci95", "prompts"})
            assert cell["prompts"] == PROMPTS
    assert {"dpo-sft", "sft best_of 4-1", "sft best_of 16-4"} <= set(content["paired_gain"])
    for gain in content["paired_gain"].values():
        check_mean(gain, {"mean", "ci95"})
    model = content["reward_model"]
    assert {"held_out_accuracy", "noisy_label_accuracy", "pairs"} <= set(model)
    assert (model["held_out_accuracy"], model["noisy_label_accuracy"], model["pairs"]) == (0.9, 0.8, 123)
    assert model["noisy_label_ceiling"] == 0.85
    assert content["seconds"] == {"data": 1.5, "sft": 20.0}
    assert content["peak_memory_bytes"] == 3 * 2**30


def check_mean(cell: dict[str, Any], keys: set[str]) -> None:
    assert set(cell) == keys
    low, high = cell["ci95"]
    assert low <= cell["mean"] <= high


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(measured().as_json()))
    assert results.load(path) == measured()


@pytest.mark.parametrize("content", ["", "{}", '{"reward_model": {}, "gold_reward": {}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises((ValueError, KeyError)):
        results.load(tmp_path / "results.json")


def test_the_memory_of_an_earlier_run_is_remembered_whatever_version_made_it(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert results.peak_memory_of(path) == 0
    path.write_text('{"peak_memory_bytes": 12, "gold_reward": {}}')
    assert results.peak_memory_of(path) == 12
    path.write_text("[]")
    assert results.peak_memory_of(path) == 0


def test_a_mean_is_shown_with_its_interval() -> None:
    assert results.show(Mean(0.5, (-0.104, 1.1))) == "+0.50 [-0.10, +1.10]"
