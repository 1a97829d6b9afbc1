"""Everything about a run that is not the algorithm: its folder, seed, device, signals and records.

    with start(config, "sft") as run:
        run.describe(tokenizer, parent, sources)
        metrics = train(run, model, batches, loss_fn, evaluate)      # loop.py
        run.finish(model, metrics)

SIGTERM (and Ctrl-C) stop at once while nothing is at stake; in the training loop after the current step,
whose weights are saved; while saving, after that.
"""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainers import adapters, best, checkpoint, folder, plots
from trainers.adapter_config import AdapterConfig
from trainers.checkpoint import Parent
from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.errors import StoppedError
from trainers.events import EventLog
from trainers.formats import Source
from trainers.launcher import open_devices
from trainers.page import write_page
from trainers.resume import PREFIX, Memory, Place, read_state, state_of, surplus_checkpoints, write_state

FREE_ON_RESUME = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "save_adapter",
    "eval_steps",  # but where the run chooses among its evaluations
    "model_name_or_path",  # its SHA-256 is compared instead
    "dataset_name",
    "eval_dataset_name",
    "reward_model_path",  # the reward model's SHA-256 or version is compared
    "reward_server_url",
    "reward_server_timeout",
    "vllm_server_base_url",
    "vllm_server_timeout",
    "vllm_weights_dir",
    "vllm_logprob_bound",
    "value_model_path",  # what is trained of it is in the checkpoints; of the rest the SHA-256 is compared
}
"""Settings that may differ in a continued run: they change what is kept and said, not what is learned."""


class Run:
    """One run in its output folder; made by `start`."""

    def __init__(
        self, config: RunConfig, algorithm: str, output: Path, resumed: Path | None, devices: Devices
    ) -> None:
        self.config, self.algorithm, self.output, self.resumed = config, algorithm, output, resumed
        self.devices, self.device = devices, devices.device
        self.tokenizer: Any = None
        self.parent: Parent | None = None
        self.sources: Sequence[Source] = ()
        self.reward_model: Mapping[str, str] | None = None
        self.frozen: dict[str, str] = {}
        """The SHA-256 of each checkpoint whose weights are used as they are, and are not in this run's."""
        self.signals = Signals()
        self.choice = best.choice_of(config)
        self.events: EventLog | None = None

    def say(self, text: str) -> None:
        """Tells the user one line."""
        if self.devices.is_main:
            print(f"{self.algorithm}: {text}", file=sys.stderr, flush=True)

    def describe(self, tokenizer: Any, parent: Parent | None, sources: Sequence[Source]) -> None:
        """Says what the model is made from; wanted before anything can be saved."""
        self.tokenizer, self.parent, self.sources = tokenizer, parent, sources
        if parent is not None and not parent.verified:
            self.say(f"{parent.name} has no manifest and was not verified")

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the precision of the run."""
        with torch.no_grad(), self.precision():
            yield

    def precision(self) -> torch.autocast:
        """Autocast to bfloat16 where the run asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def alignment(
        self, metrics: dict[str, Any], calibration: dict[str, Any] | None = None, reward_offset: float = 0.0
    ) -> dict[str, Any]:
        """The content of alignment.json."""
        parent = self.parent and {"path": self.parent.name, "sha256": self.parent.sha256}
        judge = {} if self.reward_model is None else {"reward_model": dict(self.reward_model)}
        return {
            "algorithm": self.algorithm,
            "config": asdict(self.config),
            **self._processes(),
            "parent": parent,
            **judge,
            "data": [asdict(source) for source in self.sources],
            "seed": self.config.seed,
            "metrics": metrics,
            "calibration": calibration,
            "reward_offset": reward_offset,
            "versions": checkpoint.versions(),
        }

    def restore(self, model: Any, optimizer: torch.optim.Optimizer, memory: Memory | None) -> Place:
        """Continues where the run left off, if it is a continued one."""
        if self.resumed is None:
            return Place()
        place = read_state(self.resumed, model, optimizer, self._fingerprint(), memory, self.devices)
        if place.best_step:
            self.best_checkpoint(place)  # before the steps, not after them, if it is gone
        self.devices.on_main(lambda: folder.forget_metrics_after(self.output, place.step))
        self.say(f"continuing from {self.resumed}")
        return place

    def best_checkpoint(self, place: Place) -> Path:
        """Where the weights of the best evaluation so far are."""
        return best.best_checkpoint(self.output, self.resumed, place)

    def record(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, and to TensorBoard's events."""
        if not self.devices.is_main:
            return
        if self.config.report_to == "tensorboard":
            if self.events is None:
                earlier = plots.read_metrics(self.output / folder.METRICS) if self.resumed else []
                self.events = EventLog(self.output / folder.EVENTS, earlier)
            self.events.add(line)
        folder.append_metrics(self.output, line)

    def last_record(self, place: Place) -> dict[str, float]:
        """What the last line of metrics.jsonl says of the step that `place` is at."""
        lines = self.devices.on_main(lambda: plots.read_metrics(self.output / folder.METRICS))
        return lines[-1] if lines and lines[-1]["step"] == place.step else {}

    def write_page(self, state: str) -> None:
        """Writes run.html anew."""
        write_page(self.output, self.config, self.alignment({}), state)

    def close(self) -> None:
        """Closes what is open."""
        if self.events is not None:
            self.events.close()

    def save_step(
        self, model: Any, optimizer: torch.optim.Optimizer, place: Place, memory: Memory | None
    ) -> Path:
        """Writes checkpoint-N, then removes the oldest beyond the limit."""
        target = self.output / f"{PREFIX}{place.step}"
        state, kept = state_of(optimizer, memory, self.devices), adapters.as_step(model, self.devices)

        def save() -> None:
            if not (target / checkpoint.MANIFEST).exists():
                checkpoint.save(
                    kept,
                    self.tokenizer,
                    target,
                    self.alignment(asdict(place)),
                    lambda staging: write_state(staging, state, place, self._fingerprint()),
                )
            for old in surplus_checkpoints(self.output, self.config.save_total_limit):
                checkpoint.remove(old)
            self.write_page(f"saved {target.name}")

        self.devices.on_main(save)
        return target

    def finish(
        self,
        model: Any,
        metrics: dict[str, Any],
        calibration: dict[str, Any] | None = None,
        reward_offset: float = 0.0,
    ) -> None:
        """Writes the plots and the trained model into the output folder."""
        alignment = self.alignment(metrics, calibration, reward_offset)
        is_alone = isinstance(self.config, AdapterConfig) and self.config.save_adapter
        kept = adapters.as_result(model, self.devices, is_alone)

        def save() -> None:
            plots.plot_loss(self.output / folder.METRICS, self.output / folder.PLOT, self.algorithm)
            plots.plot_curves(self.output / folder.METRICS, self.output / folder.CURVES, self.algorithm)
            self.write_page("finished")
            checkpoint.save(kept, self.tokenizer, self.output, alignment)

        with self.signals.deferred():
            self.devices.on_main(save)
            self.say(f"saved {self.output}")

    def _processes(self) -> dict[str, Any]:
        """How many processes share the work, where there are several: each takes --per_device_... of it."""
        count = self.devices.part.count
        return {"processes": count} if count > 1 else {}

    def _fingerprint(self) -> dict[str, Any]:
        free = FREE_ON_RESUME - {"eval_steps"} if self.choice else FREE_ON_RESUME
        settings = {k: v for k, v in asdict(self.config).items() if k not in free}
        return settings | {
            **self._processes(),
            **self.frozen,
            "algorithm": self.algorithm,
            "parent checkpoint": self.parent and self.parent.sha256,
            "reward model": self.reward_model
            and {name: value for name, value in self.reward_model.items() if name not in ("path", "url")},
            "data": [source.sha256 or source.path for source in self.sources],
        }


class Signals:
    """SIGTERM and Ctrl-C: at once while nothing is at stake, after the current step or save otherwise."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_deferred = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches both for as long as the run lasts."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets what is inside come to its end before the run stops."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False
        if self.received:
            self.stop("stopped after saving")

    def stop(self, message: str) -> None:
        """Ends the run with the code of the signal."""
        raise StoppedError(message, 130 if self.received == signal.SIGINT else 143)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return  # it is stopping: Ctrl-C reaches a launched process twice, from terminal and launcher
        self.received = number
        if not self.is_deferred:
            self.stop("stopped with nothing new to save")


@contextmanager
def start(config: RunConfig, algorithm: str) -> Iterator[Run]:
    """Opens the output folder, writes the settings, seeds the generators and catches signals."""
    output = Path(config.output_dir)
    devices = open_devices(config)
    with ExitStack() as held:

        def hold() -> Path | None:
            held.enter_context(folder.lock(output))
            return folder.prepare(output, config)

        run = Run(config, algorithm, output, devices.on_main(hold), devices)
        torch.manual_seed(config.seed)
        try:
            with run.signals.caught():
                yield run
        finally:
            run.close()
