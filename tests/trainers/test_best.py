"""Choosing among the evaluations of a run: which is the best, when to stop, and what is kept of it."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.test_loop import NoTokenizer, Numbers, Source, Weight, metrics_of, squares
from trainers import checkpoint, reward, sft
from trainers.best import Choice, best_checkpoint
from trainers.config import TrainingConfig
from trainers.errors import CheckpointError, ConfigError
from trainers.loop import Loss, train
from trainers.resume import Place, step_checkpoints
from trainers.run import start


def settled(choice: Choice, values: Sequence[float]) -> Place:
    place = Place()
    for value in values:
        place.step += 10
        choice.take(place, {choice.metric: value, "loss": 1.0})
    return place


@pytest.mark.parametrize(
    ("metric", "values", "best_step", "since"),
    [
        ("eval_reward", [0.1, 0.3, 0.2], 20, 1),
        ("eval_loss", [0.1, 0.3, 0.2], 10, 2),
        ("eval_reward", [0.3, 0.3], 10, 1),  # of equal ones the first
        ("eval_loss", [math.nan, 2.0, math.nan], 20, 1),
        ("eval_loss", [math.nan, math.inf], 0, 2),
    ],
)
def test_the_best_of_some(metric: str, values: list[float], best_step: int, since: int) -> None:
    place = settled(Choice(metric, None), values)
    assert (place.best_step, place.evaluations_since_best) == (best_step, since)
    assert place.best_metrics == ({metric: values[best_step // 10 - 1]} if best_step else {})


def test_patience_counts_evaluations_in_a_row() -> None:
    values = [0.1, 0.0, 0.2, 0.1, 0.1]
    over = [Choice("eval_reward", 2).is_over(settled(Choice("eval_reward", 2), values[:n])) for n in range(6)]
    assert over == [False, False, False, False, False, True]
    assert not Choice("eval_reward", None).is_over(settled(Choice("eval_reward", None), values))


# ---- in the loop: one weight that goes after 10, and is best at 2 --------------------


def config(folder: Path, **settings: Any) -> TrainingConfig:
    named: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "eval_dataset_name": "e"}
    steps: dict[str, Any] = {"max_steps": 20, "eval_steps": 2, "save_steps": 3, "logging_steps": 1}
    choosing: dict[str, Any] = {"load_best_model_at_end": True, "lr_scheduler_type": "constant"}
    given: dict[str, Any] = (
        {"output_dir": str(folder), "learning_rate": 0.5} | named | steps | choosing | settings
    )
    return TrainingConfig(**given)


class LoadableWeight(Weight):
    """A weight that comes back from a checkpoint."""

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> "LoadableWeight":
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model


def run_to_ten(settings: TrainingConfig) -> tuple[float, dict[str, float], list[str]]:
    """The weight at the end, what train returned, and the checkpoints left."""
    model = LoadableWeight()

    def loss_fn(batch: Numbers) -> Loss:
        return squares(model, batch)

    def evaluate(_: int) -> dict[str, float]:
        return {"eval_loss": (model.weight.item() - 2) ** 2}

    with start(settings, "test") as run:
        run.describe(NoTokenizer(), None, [])
        last = train(run, model, Source([10.0]), loss_fn, evaluate)
        return model.weight.item(), last, [folder.name for folder in step_checkpoints(run.output)]


def test_the_best_weights_are_what_the_run_ends_with(tmp_path: Path) -> None:
    # With Adam the weight rises by half a step: 1 after two steps, 2 after four, 3 after six, ...
    weight, last, kept = run_to_ten(config(tmp_path))
    assert weight == pytest.approx(2, abs=0.2)
    assert (last["step"], last["last_step"]) == (4, 20)
    assert last["eval_loss"] == (weight - 2) ** 2
    assert kept == ["checkpoint-4", "checkpoint-15", "checkpoint-18"]


def test_it_stops_when_patience_is_over(tmp_path: Path) -> None:
    weight, last, kept = run_to_ten(config(tmp_path, early_stopping_patience=2))
    assert (last["step"], last["last_step"]) == (4, 8)
    assert weight == pytest.approx(2, abs=0.2)
    assert kept == ["checkpoint-4", "checkpoint-6"]


def test_where_it_does_not_choose_it_ends_with_the_last(tmp_path: Path) -> None:
    weight, last, _ = run_to_ten(config(tmp_path, load_best_model_at_end=False))
    assert weight > 5
    assert last["step"] == 20


@pytest.mark.parametrize("step", [2, 3, 4, 6, 9, 12, 15, 18])
def test_a_run_cut_after_any_checkpoint_chooses_the_same(tmp_path: Path, step: int) -> None:
    settings = {"save_total_limit": 99, "early_stopping_patience": 9}
    whole = run_to_ten(config(tmp_path / "whole", **settings))
    again = str(tmp_path / "whole" / f"checkpoint-{step}")
    cut = run_to_ten(config(tmp_path / "cut", resume_from_checkpoint=again, **settings))
    assert cut[:2] == whole[:2]


def test_a_run_that_was_over_stays_over(tmp_path: Path) -> None:
    settings = {"early_stopping_patience": 2, "save_steps": 8}
    whole = run_to_ten(config(tmp_path, **settings))
    assert whole[2] == ["checkpoint-4", "checkpoint-8"]
    assert run_to_ten(config(tmp_path, resume_from_checkpoint="latest", **settings)) == whole


def test_a_best_checkpoint_that_is_gone_is_said_before_the_steps(tmp_path: Path) -> None:
    run_to_ten(config(tmp_path))
    checkpoint.remove(tmp_path / "checkpoint-4")
    with pytest.raises(CheckpointError, match="checkpoint-4: gone, and it was the best"):
        run_to_ten(config(tmp_path, resume_from_checkpoint="latest"))
    with pytest.raises(CheckpointError, match="gone"):
        best_checkpoint(tmp_path, None, Place(best_step=5))


def test_other_evaluation_steps_are_another_run_only_where_it_chooses(tmp_path: Path) -> None:
    run_to_ten(config(tmp_path / "a"))
    with pytest.raises(ConfigError, match="changed: eval_steps"):
        run_to_ten(config(tmp_path / "a", eval_steps=3, resume_from_checkpoint="latest"))
    run_to_ten(config(tmp_path / "b", load_best_model_at_end=False))
    more: dict[str, Any] = {"eval_steps": 3, "resume_from_checkpoint": "latest"}
    run_to_ten(config(tmp_path / "b", load_best_model_at_end=False, **more))


def test_a_finished_run_says_what_it_said(tmp_path: Path) -> None:
    with start(config(tmp_path, load_best_model_at_end=False, save_steps=20), "test") as run:
        run.describe(NoTokenizer(), None, [])
        model = LoadableWeight()
        last = train(run, model, Source([1.0]), partial(squares, model), lambda _: {"eval_loss": 1.0})
    again = config(tmp_path, load_best_model_at_end=False, save_steps=20, resume_from_checkpoint="latest")
    with start(again, "test") as run:
        run.describe(NoTokenizer(), None, [])
        model = LoadableWeight()
        assert last == train(run, model, Source([1.0]), partial(squares, model), lambda _: {})
        assert metrics_of(run)[-1] == last
    assert torch.isfinite(model.weight)


# ---- settings --------------------------------------------------------------------------------------------

NAMED: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"early_stopping_patience": 2}, "goes with --load_best_model_at_end"),
        ({"load_best_model_at_end": True, "eval_dataset_name": "e"}, "say --eval_steps"),
        ({"load_best_model_at_end": True, "eval_steps": 1}, "chooses by loss: give --eval_dataset_name"),
        (
            {"load_best_model_at_end": True, "eval_steps": 1, "metric_for_best_model": "reward"},
            "chooses by reward: give --eval_dataset_name, and for the reward --reward_model_path",
        ),
        ({"reward_model_path": "r"}, "give --eval_prompts"),
        ({"eval_prompts": "p"}, "goes with --reward_model_path"),
        ({"reward_model_path": "r", "reward_server_url": "u"}, "give one"),
        ({"reward_server_model": "r"}, "goes with --reward_server_url"),
        ({"reward_model_path": "r", "eval_prompts": "p", "response_length": 1024}, "leave room"),
        ({"eval_prompts_limit": 0}, "--eval_prompts_limit must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sft.Config(**NAMED, **settings)


def test_patience_is_at_least_one() -> None:
    choosing: dict[str, Any] = {"load_best_model_at_end": True, "eval_steps": 1, "eval_dataset_name": "e"}
    with pytest.raises(ConfigError, match="--early_stopping_patience must be at least 1"):
        reward.Config(**NAMED, **choosing, early_stopping_patience=0)


def test_what_it_chooses_by() -> None:
    held_out: dict[str, Any] = {"eval_dataset_name": "e"}
    assert sft.Config(**NAMED, **held_out).best_metric == "loss"
    assert sft.Config(**NAMED, **held_out, reward_model_path="r").best_metric == "reward"
    by_loss = sft.Config(**NAMED, **held_out, reward_model_path="r", metric_for_best_model="loss")
    assert by_loss.best_metric == "loss"
