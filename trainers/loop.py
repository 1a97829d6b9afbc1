"""The training loop, the same for every algorithm.

The algorithm gives `loss_fn(batch)`, which returns a `Loss`: one value for each unit that the mean is taken
over (a target token, a pair). With gradient accumulation the mean is over all units of the step at once, not
a mean of means. A step whose loss or gradient is not finite is not taken: the weights before it are saved and
the run ends with exit code 6.

`train` is for data that are there before; `drive` is its frame, for an algorithm whose steps are its own (the
online methods, where one step is a batch of episodes and all that is learned from it).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, Self, TypeVar

import torch

from trainers.data import Idle
from trainers.devices import Devices
from trainers.errors import DivergedError, StepError
from trainers.optimizer import learning_rate, make_optimizer
from trainers.progress import ProgressBar
from trainers.resume import Memory, Place, load_weights, step_checkpoints
from trainers.run import Run


@dataclass(frozen=True, slots=True)
class Loss:
    """What a loss function returns for one batch."""

    values: torch.Tensor
    """One differentiable value for each unit of the batch; the step minimises their mean."""
    num_tokens: int
    """Tokens that were computed, padding left out."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """More values for each example; their means are reported under these names."""
    num_units: int | None = None
    """Units that the values count for in the step's mean; None: one for each. 0 is for a term that is added
    to that mean, already in proportion."""

    @property
    def units(self) -> int:
        return len(self.values) if self.num_units is None else self.num_units

    def silenced(self) -> Self:
        """The same of no example: nothing is learned from it, and nothing reported."""
        metrics = {name: values[:0] for name, values in self.metrics.items()}
        return replace(self, values=self.values[:0], num_tokens=0, metrics=metrics)


class Movable(Protocol):
    def to(self, device: torch.device) -> Self: ...


BatchT = TypeVar("BatchT", bound=Movable)
BatchT_co = TypeVar("BatchT_co", bound=Movable, covariant=True)


class BatchSource(Protocol[BatchT_co]):
    """Batches in an order that depends on the epoch alone, so that a run can continue inside one."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BatchT_co | Idle[BatchT_co]]: ...


def train(
    run: Run,
    model: Any,
    batches: BatchSource[BatchT],
    loss_fn: Callable[[BatchT], Loss],
    evaluate: "Evaluate | None" = None,
    memory: Memory | None = None,
) -> dict[str, float]:
    """Trains `model` in place; returns the last line of metrics, evaluation included.

    `evaluate` is called every --eval_steps and after the last step; `memory` is what the algorithm wants
    saved and restored with the weights. With --load_best_model_at_end the model ends as it was at its best
    evaluation, whose metrics are returned. Raises DivergedError and StoppedError, each after saving.
    """
    config = run.config
    per_epoch = math.ceil(len(batches) / config.gradient_accumulation_steps)
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)
    run.devices.place(model)
    optimizer = make_optimizer(model, config)

    def steps(start: int) -> Iterator[Step]:
        for window in windows(batches, config.gradient_accumulation_steps, start, total):
            yield partial(take_step, run, model, optimizer, window, loss_fn)

    saved = Saved(model, optimizer, memory)
    return drive(run, saved, steps, total, per_epoch, evaluate)


Step = Callable[[float, "Meter"], None]
"""Takes one step at a learning rate; what it raises leaves the run where it was before the step."""
Evaluate = Callable[[int], dict[str, float]]
"""Evaluates the model after so many steps: eval_* metrics, which depend on its weights alone."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds and a continued run gets back."""

    model: Any
    optimizer: torch.optim.Optimizer
    memory: Memory | None


def drive(
    run: Run,
    saved: Saved,
    steps: Callable[[int], Iterator[Step]],
    total: int,
    per_epoch: float,
    evaluate: Evaluate | None = None,
) -> dict[str, float]:
    """Takes steps from where the run left off up to `total`; records, evaluates and saves between them.

    `steps(start)` yields each step from the `start`-th on. Returns the last line of metrics, or what the best
    evaluation found, if the run chooses.
    """
    config, choice = run.config, run.choice
    place = run.restore(saved.model, saved.optimizer, saved.memory)
    meter = Meter(place)
    last = run.last_record(place) if place.step >= total else {}
    with (
        run.signals.deferred(),
        ProgressBar(run.algorithm, total, place.step, is_shown=run.devices.is_main) as bar,
    ):
        for take in steps(place.step):
            if choice and choice.is_over(place):
                run.say(f"stopping at step {place.step}: no better {choice.metric} since {place.best_step}")
                break
            rate = learning_rate(config, place.step, total)
            try:
                take(rate, meter)
            except StepError as error:
                raise type(error)(f"{error}; {_keep_last_good(run, saved, place, error)}") from None
            meter.advance()
            bar.update(place.step, meter.tokens_per_second, loss=meter.loss)
            is_last = place.step == total
            line: dict[str, float] = {}
            if is_last or _is_due(place.step, config.logging_steps):
                line = {"epoch": place.step / per_epoch, "learning_rate": rate} | meter.report()
            if evaluate and (is_last or _is_due(place.step, config.eval_steps)):
                line |= evaluate(place.step)
                if choice:
                    choice.take(place, line)
            if line:
                last = {"step": place.step} | line
                run.record(last)
            _save_if_due(run, saved, place)
        if choice and place.best_step:
            load_weights(saved.model, run.best_checkpoint(place), run.devices)
            last = choice.summary(place)
            run.say(f"took the weights of step {place.best_step}, the best by {choice.metric}")
    return last


def evaluate_loss(
    run: Run, model: Any, batches: BatchSource[BatchT], loss_fn: Callable[[BatchT], Loss]
) -> dict[str, float]:
    """The mean loss and metrics over held-out batches, as eval_loss and eval_*."""
    with run.inference():
        losses = [
            run.devices.call(model, _compute, loss_fn, batch.to(run.device))[1] for batch in batches.epoch(0)
        ]
    values = {"loss": torch.cat([loss.values for loss in losses])}
    values |= {name: torch.cat([loss.metrics[name] for loss in losses]) for name in losses[0].metrics}
    everywhere = run.devices.gather({name: value.cpu() for name, value in values.items()})
    return {
        f"eval_{name}": float(torch.cat([part[name] for part in everywhere]).double().mean())
        for name in values
    }


def windows(
    batches: BatchSource[BatchT], size: int, start: int, total: int
) -> Iterator[list[BatchT | Idle[BatchT]]]:
    """The batches of each optimizer step from `start` to `total`; a step ends with its epoch."""
    per_epoch = math.ceil(len(batches) / size)
    step = start
    while step < total:
        epoch, done = divmod(step, per_epoch)
        source = batches.epoch(epoch, done * size)
        while step < total and (window := list(islice(source, size))):
            yield window
            step += 1


def take_step(
    run: Run,
    model: Any,
    optimizer: torch.optim.Optimizer,
    window: Sequence[BatchT | Idle[BatchT]],
    loss_fn: Callable[[BatchT], Loss],
    rate: float,
    meter: "Meter",
    placed_of: Callable[[BatchT | Idle[BatchT]], Any] | None = None,
) -> None:
    """One optimizer step over a window of batches; not taken where it is not finite (DivergedError).

    `placed_of(batch)` is the model that a batch is for, where `model` holds several, each placed by itself.
    """
    optimizer.zero_grad(set_to_none=True)
    devices, losses = run.devices, []
    placed = [placed_of(batch) if placed_of else model for batch in window]
    for number, batch in enumerate(window):
        with run.precision():
            is_last = all(other is not placed[number] for other in placed[number + 1 :])
            values, loss = devices.call(
                placed[number], _compute, loss_fn, batch.to(run.device), is_last=is_last
            )
        values.sum().backward()
        losses.append(loss)
    totals = Totals.of(losses, devices)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # DDP and FSDP2 leave the mean over the processes, and the sum is wanted.
    scale = devices.part.count / totals.num_units
    grad_norm = float(devices.whole(torch.nn.utils.get_total_norm(gradients, foreach=True))) * scale
    meter.add(totals, grad_norm)
    if not math.isfinite(meter.loss) or not math.isfinite(grad_norm):
        raise DivergedError(f"the loss is {meter.loss:.3g} and the gradient's norm {grad_norm:.3g}")
    # As torch clips, but in one pass over the gradients.
    max_norm = run.config.max_grad_norm or math.inf
    torch._foreach_mul_(gradients, scale * min(1.0, max_norm / (grad_norm + 1e-6)))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.step()


def _compute(loss_fn: Callable[[BatchT], Loss], batch: BatchT | Idle[BatchT]) -> tuple[torch.Tensor, Loss]:
    loss = loss_fn(batch.stand_in).silenced() if isinstance(batch, Idle) else loss_fn(batch)
    metrics = {name: values.detach() for name, values in loss.metrics.items()}
    return loss.values, replace(loss, metrics=metrics)


@dataclass(frozen=True, slots=True)
class Totals:
    """What the losses of a step add up to, in all processes together."""

    loss: float
    num_units: int
    num_tokens: int
    metrics: dict[str, tuple[float, int]]
    """Sum and number of the values of each."""

    @classmethod
    def of(cls, losses: Sequence[Loss], devices: Devices) -> Self:
        """Adds up the losses of this process's part of a step, and those of the other processes."""
        named: dict[str, list[torch.Tensor]] = {}
        for loss in losses:
            for name, values in loss.metrics.items():
                named.setdefault(name, []).append(values)
        total, units, tokens, *rest = devices.add_up(
            [
                _sum([loss.values for loss in losses]),
                sum(loss.units for loss in losses),
                sum(loss.num_tokens for loss in losses),
                *map(_sum, named.values()),
                *(sum(map(torch.numel, parts)) for parts in named.values()),
            ]
        )
        pairs = zip(rest[: len(named)], map(int, rest[len(named) :]), strict=True)
        return cls(total, int(units), int(tokens), dict(zip(named, pairs, strict=True)))


def _sum(parts: Sequence[torch.Tensor]) -> float:
    return sum(float(part.detach().sum(dtype=torch.float64)) for part in parts)


class Meter:
    """Gathers what the steps since the last report said."""

    def __init__(self, place: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self.place, self.clock = place, clock
        self.last_time = clock()
        self.loss = math.nan
        self.tokens_per_second = 0.0
        self.new_tokens = 0
        self._reset()

    def add(self, totals: Totals, grad_norm: float) -> None:
        """Takes in what the losses of one step add up to."""
        self.loss = totals.loss / totals.num_units
        self._add("loss", totals.loss, totals.num_units)
        self._add("grad_norm", grad_norm, 1)
        for name, (total, count) in totals.metrics.items():
            self._add(name, total, count)
        self.new_tokens += totals.num_tokens

    def note(self, name: str, values: torch.Tensor) -> None:
        """Takes in more values, whose mean is reported under this name."""
        self._add(name, _sum([values]), values.numel())

    def advance(self) -> None:
        """Counts the step that was taken."""
        now = self.clock()
        elapsed, self.last_time = now - self.last_time, now
        self.tokens += self.new_tokens
        self.seconds += elapsed
        self.tokens_per_second = self.tokens / max(self.seconds, 1e-9)
        self.place.step += 1
        self.place.tokens += self.new_tokens
        self.place.seconds += elapsed
        self.new_tokens = 0

    def report(self) -> dict[str, float]:
        """The means since the last report, with the running totals; starts anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        totals = {"tokens": self.place.tokens, "seconds": round(self.place.seconds, 3)}
        speed = {"tokens_per_second": round(self.tokens_per_second, 1)}
        self._reset()
        return means | totals | speed

    def _add(self, name: str, total: float, count: int) -> None:
        before = self.sums.get(name, (0.0, 0))
        self.sums[name] = (before[0] + total, before[1] + count)

    def _reset(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.tokens = 0
        self.seconds = 0.0


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save_if_due(run: Run, saved: Saved, place: Place) -> None:
    is_stopping = run.devices.any(run.signals.received is not None)
    is_best = place.best_step == place.step
    if is_stopping or is_best or _is_due(place.step, run.config.save_steps):
        folder_of_step = run.save_step(saved.model, saved.optimizer, place, saved.memory)
        if is_stopping:
            run.signals.stop(f"stopped; saved {folder_of_step}")


def _keep_last_good(run: Run, saved: Saved, place: Place, error: StepError) -> str:
    """Saves the weights before the step that failed, if they are still there and sound; says where the last
    good ones are.
    """
    is_sound = all(bool(run.devices.whole(p.isfinite().all())) for p in saved.model.parameters())
    if place.step > 0 and error.is_undone and is_sound:
        run.save_step(saved.model, saved.optimizer, place, saved.memory)
    kept = step_checkpoints(run.output)
    where = f"the last good checkpoint is {kept[-1]}" if kept else "there is no good checkpoint yet"
    return "; ".join(filter(None, (where, error.advice)))
