"""`make demo`: trains the small world's models, serves the aligned one, and shows that alignment worked.

    python -m trainers.tiny.demo [--folder runs/demo] [--port 8000]

Trains what is missing; serves base, SFT, DPO and PPO in turn with best-of-N, each measured through the
gateway on held-out prompts; prints the table with its claims; and serves the DPO policy until Ctrl-C. With
DEMO_EXIT=1 in the environment it ends after the table, with exit code 0 only if every claim holds.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import aiohttp
import tyro
from rich.console import Console

from trainers.tiny import measure, report, results
from trainers.tiny.evaluate import Subject
from trainers.tiny.generate import Prompt
from trainers.tiny.journal import Journal, Step, code_digest
from trainers.tiny.memory import PeakMemory
from trainers.tiny.preferences import noisy_ceiling
from trainers.tiny.recipe import LABEL_SCALE, StepError, read_jsonl, steps
from trainers.tiny.results import ALIGNED, BEST_OF, POLICIES, Cell, Results
from trainers.tiny.stack import Ports, Stack, StackError

MADE_BY = {"base": "pretrain", "sft": "sft", "dpo": "dpo", "ppo": "ppo"}
"""Policy -> the step that trains it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Trains, serves and measures the small world's models."""

    folder: Path = Path("runs/demo")
    """Where everything is kept; what is there and still fits is not made again."""
    port: int = 8000
    """The gateway's port on 127.0.0.1."""
    reward_port: int = 8001
    """The reward-model server's port on 127.0.0.1."""


class Demo:
    """One demo in its folder."""

    def __init__(self, config: Config) -> None:
        self.folder = config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console = Console(highlight=False)
        self.journal = Journal(self.folder / "journal.json", code_digest())
        self.stack = Stack(self.folder / "reward", Ports(config.port, config.reward_port))

    def results(self) -> Results:
        """Does whatever is not done yet, and returns the figures."""
        todo = [step for step in self.all_steps() if not self.journal.is_done(step)]
        saved = self.folder / "results.json"
        if not todo and saved.exists():
            return results.load(saved)
        with PeakMemory(results.peak_memory_of(saved)) as memory:
            for number, step in enumerate(self.all_steps(), 1):
                self._run(step, f"[{number}/{len(self.all_steps())}]")
        measured = self._summarize(memory.peak)
        self._save(measured)
        return measured

    def all_steps(self) -> list[Step]:
        """Training, then measuring: what one stack serves side by side, and last what stays served."""
        base, sft, dpo, ppo = (self._measuring(policy) for policy in POLICIES)
        agreement = Step(
            name="judge the judge",
            title="the reward model's agreement with held-out preferences",
            after=["reward", "label"],
            output=self.folder / "agreement.json",
            recipe=[],
            action=self._measure_agreement,
        )
        return [*steps(self.folder), base, sft, agreement, ppo, dpo]

    def greet(self) -> None:
        """Serves the aligned policy and asks it one question."""
        self.stack.serve(self.folder / "dpo")
        question = next(p for p in self._held_out() if p["skill"] == "decline")
        asked = measure.ask_once(Subject(self.stack.url, "dpo", chat=True), question, BEST_OF[1])
        self.console.print(f"\nQ: {question['prompt'][-1]['content']}", markup=False, soft_wrap=True)
        self.console.print(f"A: {asked}    (dpo, best_of {BEST_OF[1]})", markup=False, soft_wrap=True)
        self.console.print(f"\n{self.stack.greeting()}", markup=False, soft_wrap=True)

    def _run(self, step: Step, number: str) -> None:
        if self.journal.is_done(step):
            self.console.print(f"[dim]{number} {step.name}: done before[/]")
            return
        self.console.print(f"[bold]{number} {step.name}[/]: {step.title}", soft_wrap=True)
        self.journal.run(step)
        self.console.print(f"    {self.journal.seconds()[step.name]:.0f} s")

    def _measuring(self, policy: str) -> Step:
        output = self.folder / f"measured-{policy}.json"
        return Step(
            name=f"measure {policy}",
            title=f"gold reward of {policy} through the gateway, at best_of 1, 4 and 16",
            after=["data", MADE_BY[policy], "reward"],
            output=output,
            recipe=[str(dict(measure.REPEATS))],
            action=partial(self._measure, policy, output),
        )

    def _measure(self, policy: str, output: Path) -> None:
        self.stack.serve(self.folder / policy)
        subject = Subject(self.stack.url, policy, chat=policy != "base")
        measure.measure_policy(subject, self._held_out(), self.console, output)

    def _held_out(self) -> list[Prompt]:
        return [p for p in read_jsonl(self.folder / "data/prompts.jsonl") if p["split"] == "held_out"]

    def _measure_agreement(self) -> None:
        self.stack.serve(self.folder / "sft")
        pairs = self.folder / "pairs/held_out.jsonl"
        measure.measure_agreement(self.stack.reward_url, pairs, self.folder / "agreement.json")

    def _summarize(self, peak_memory_bytes: int) -> Results:
        rewards: dict[Cell, list[float]] = {}
        for policy in POLICIES:
            rewards |= measure.read_policy(policy, self.folder / f"measured-{policy}.json")
        return results.summarize(
            rewards,
            measure.read_agreement(self.folder / "agreement.json"),
            noisy_ceiling(read_jsonl(self.folder / "pairs/held_out.jsonl"), LABEL_SCALE),
            {policy: measure.read_kl(self.folder / f"kl-{policy}.json") for policy in ALIGNED},
            self.journal.seconds(),
            peak_memory_bytes,
        )

    def _save(self, measured: Results) -> None:
        report.plot(measured, self.folder / "results.png")
        (self.folder / "results.md").write_text(report.markdown(measured), encoding="utf-8")
        part = self.folder / "results.json.part"
        part.write_text(json.dumps(measured.as_json(), indent=1), encoding="utf-8")
        part.replace(self.folder / "results.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code."""
    config = tyro.cli(Config, prog="python -m trainers.tiny.demo", description=__doc__, args=argv)
    for port in (config.port, config.reward_port):
        if not _is_free(port):
            print(
                f"error: port {port} is in use; end what uses it, or choose another by --port",
                file=sys.stderr,
            )
            return 2
    signal.signal(signal.SIGTERM, _interrupt)
    demo = Demo(config)
    try:
        return _show(demo)
    except (StepError, StackError) as error:
        print(f"error: {error}; `make demo` again goes on from here", file=sys.stderr)
        return error.exit_code
    except aiohttp.ClientError as error:
        print(f"error: measuring broke off: {error}; see {config.folder}/logs", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; `make demo` again goes on from here", file=sys.stderr)
        return 130
    finally:
        demo.stack.stop()


def _show(demo: Demo) -> int:
    measured = demo.results()
    demo.console.print(f"\n{report.markdown(measured)}", markup=False, soft_wrap=True)
    demo.console.print(
        f"Saved: {demo.folder}/results.md, results.png, results.json", markup=False, soft_wrap=True
    )
    if os.environ.get("DEMO_EXIT") == "1":
        return 0 if all(claim.holds for claim in measured.claims()) else 1
    demo.greet()
    return demo.stack.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
