"""The training loop: means over units, order, records, and stopping where it is not finite."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.errors import DivergedError
from trainers.loop import Loss, Meter, Saved, Step, Totals, drive, evaluate_loss, train, windows
from trainers.resume import Place, step_checkpoints
from trainers.run import Run, start


@dataclass
class Numbers:
    """A batch of numbers to be met by one weight."""

    values: list[float]

    def to(self, device: torch.device) -> Self:
        return self


class Source:
    """Batches of numbers, the same in every epoch."""

    def __init__(self, *batches: list[float]) -> None:
        self.batches = [Numbers(values) for values in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Numbers]:
        yield from self.batches[start:]


class Weight(torch.nn.Module):
    """One weight, that can be saved as a checkpoint is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "generation_config.json").write_text("{}")
        save_file(self.state_dict(), folder / "model.safetensors")


class NoTokenizer:
    """Stands where a run's tokenizer stands."""

    def save_pretrained(self, folder: Path, save_jinja_files: bool) -> None:
        (folder / "tokenizer_config.json").write_text("{}")


def config(folder: Path, **settings: Any) -> RunConfig:
    return RunConfig(output_dir=str(folder), **{"logging_steps": 1, "learning_rate": 0.5} | settings)


def squares(model: Weight, batch: Numbers) -> Loss:
    values = (model.weight - torch.tensor(batch.values)).square()
    return Loss(values, len(batch.values), {"twice": 2 * values.detach()})


def metrics_of(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]


def test_windows_end_with_their_epoch() -> None:
    source = Source([1], [2], [3])
    taken = [[batch.values[0] for batch in window] for window in windows(source, 2, start=0, total=5)]
    assert taken == [[1, 2], [3], [1, 2], [3], [1, 2]]
    later = [[batch.values[0] for batch in window] for window in windows(source, 2, start=3, total=5)]
    assert later == taken[3:]


def test_the_mean_is_over_units_not_over_batches(tmp_path: Path) -> None:
    # Units 1, 2 | 6: mean of squares around 0 is (1 + 4 + 36) / 3, its gradient -2 * (1 + 2 + 6) / 3 = -6.
    settings = config(tmp_path, gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0.0)
    with start(settings, "test") as run:
        model = Weight()
        last = train(run, model, Source([1, 2], [6]), partial(squares, model))
    assert last["loss"] == pytest.approx(41 / 3)
    assert last["twice"] == pytest.approx(82 / 3)
    assert last["grad_norm"] == pytest.approx(6)
    assert last["tokens"] == 3


def test_gradients_are_clipped_and_reported_unclipped(tmp_path: Path) -> None:
    with start(config(tmp_path, max_steps=1, max_grad_norm=0.5), "test") as run:
        model = Weight()
        last = train(run, model, Source([3.0]), partial(squares, model))
    assert last["grad_norm"] == pytest.approx(6)
    assert model.weight.grad is not None
    assert model.weight.grad.item() == pytest.approx(-0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"num_train_epochs": 2}, 6), ({"num_train_epochs": 0.5}, 2), ({"max_steps": 4}, 4)],
)
def test_how_long_it_runs(tmp_path: Path, settings: dict[str, Any], steps: int) -> None:
    with start(config(tmp_path, **settings), "test") as run:
        model = Weight()
        last = train(run, model, Source([1], [2], [3]), partial(squares, model))
        assert [line["step"] for line in metrics_of(run)] == list(range(1, steps + 1))
    assert last["epoch"] == pytest.approx(steps / 3)


def test_evaluation_comes_when_due_and_last(tmp_path: Path) -> None:
    with start(config(tmp_path, max_steps=5, eval_steps=2, logging_steps=5), "test") as run:
        model = Weight()
        source = Source([1.0], [2.0])
        held_out = Source([0.0, 0.0], [3.0])
        loss_fn = partial(squares, model)
        last = train(run, model, source, loss_fn, lambda _: evaluate_loss(run, model, held_out, loss_fn))
        assert [line["step"] for line in metrics_of(run) if "eval_loss" in line] == [2, 4, 5]
    weight = model.weight.item()
    assert last["eval_loss"] == pytest.approx((2 * weight**2 + (weight - 3) ** 2) / 3, rel=1e-5)
    assert last["eval_twice"] == pytest.approx(2 * last["eval_loss"])


def test_a_loss_that_is_not_finite_keeps_the_weights_before_it(tmp_path: Path) -> None:
    with start(config(tmp_path, save_steps=0), "test") as run:
        run.describe(NoTokenizer(), None, [])
        model = Weight()
        with pytest.raises(DivergedError, match=r"the loss is nan.*last good checkpoint is .*checkpoint-2"):
            train(run, model, Source([1], [2], [math.nan], [4]), partial(squares, model))
        (saved,) = step_checkpoints(run.output)
    assert load_file(saved / "model.safetensors")["weight"].item() == model.weight.item()
    assert math.isfinite(model.weight.item())


def test_a_term_of_no_units_is_added_to_the_mean(tmp_path: Path) -> None:
    # Two units with the mean (1 + 9) / 2; the term adds (4 + 6) / 2, for it counts for no unit itself.
    terms = {1.0: None, 4.0: 0}

    def loss_fn(batch: Numbers) -> Loss:
        values = torch.tensor(batch.values) + 0 * model.weight
        return Loss(values, 1, num_units=terms[batch.values[0]])

    settings = config(tmp_path, gradient_accumulation_steps=2, max_steps=1)
    with start(settings, "test") as run:
        model = Weight()
        last = train(run, model, Source([1.0, 9.0], [4.0, 6.0]), loss_fn)
    assert last["loss"] == pytest.approx(5 + (4 + 6) / 2)


def test_a_step_that_is_half_taken_is_not_saved(tmp_path: Path) -> None:
    def steps(start_at: int) -> Iterator[Step]:
        yield lambda rate, meter: None
        yield half

    def half(rate: float, meter: Meter) -> None:
        error = DivergedError("no")
        error.is_undone = False
        raise error

    with start(config(tmp_path, save_steps=0, logging_steps=9), "test") as run:
        model = Weight()
        saved = Saved(model, torch.optim.AdamW(model.parameters()), None)
        with pytest.raises(DivergedError, match="no; there is no good checkpoint yet; try a lower"):
            drive(run, saved, steps, total=9, per_epoch=9)
        assert step_checkpoints(run.output) == []


def test_a_first_step_that_is_not_finite_saves_nothing(tmp_path: Path) -> None:
    with start(config(tmp_path), "test") as run:
        model = Weight()
        with pytest.raises(DivergedError, match="no good checkpoint yet"):
            train(run, model, Source([math.inf]), partial(squares, model))
        assert step_checkpoints(run.output) == []


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    with start(config(tmp_path, max_steps=7, save_steps=2, save_total_limit=2), "test") as run:
        run.describe(NoTokenizer(), None, [])
        model = Weight()
        train(run, model, Source([1.0]), partial(squares, model))
        assert [path.name for path in step_checkpoints(run.output)] == ["checkpoint-4", "checkpoint-6"]
        assert not [path for path in run.output.iterdir() if path.name.startswith(".")]


def totals(*losses: Loss) -> Totals:
    return Totals.of(losses, Devices(torch.device("cpu")))


def test_losses_are_added_up_by_name() -> None:
    one = Loss(torch.tensor([1.0, 3.0]), 10, {"a": torch.tensor([2.0, 5.0])})
    other = Loss(torch.tensor([8.0]), 20, {"a": torch.tensor([1.0]), "b": torch.tensor([4.0])}, num_units=0)
    assert totals(one, other) == Totals(12.0, 2, 30, {"a": (8.0, 3), "b": (4.0, 1)})
    assert totals(one, other.silenced()) == Totals(4.0, 2, 10, {"a": (7.0, 2), "b": (0.0, 0)})


def test_the_meter_by_hand() -> None:
    times = iter([0.0, 2.0, 5.0])
    meter = Meter(Place(step=3, tokens=100, seconds=1.0), clock=lambda: next(times))
    meter.add(totals(Loss(torch.tensor([1.0, 3.0]), 10)), grad_norm=2.0)
    meter.advance()
    meter.add(totals(Loss(torch.tensor([8.0]), 20)), grad_norm=4.0)
    meter.advance()
    assert meter.report() == {
        "loss": 4.0,
        "grad_norm": 3.0,
        "tokens": 130,
        "seconds": 6.0,
        "tokens_per_second": 6.0,
    }
    assert meter.place.step == 5
