"""The demo's measurements, each kept in a file of its own."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainers.intervals import Mean
from trainers.tiny.evaluate import (
    Agreement,
    Subject,
    ask,
    gold_by_prompt,
    open_session,
    reward_model_agreement,
)
from trainers.tiny.generate import Prompt
from trainers.tiny.recipe import read_jsonl
from trainers.tiny.results import BEST_OF, Cell

REPEATS: Mapping[int, int] = {1: 4, 4: 2, 16: 1}
"""Answers to each prompt at each best_of: more where one is noisier, and cheaper."""


def measure_policy(subject: Subject, prompts: list[Prompt], console: Console, output: Path) -> None:
    """Writes {best_of: [mean gold reward of each prompt]}."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rewards: dict[str, list[float]] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        for best_of in BEST_OF:
            repeats = REPEATS[best_of]
            bar = progress.add_task(f"{subject.model}, best_of {best_of}", total=len(prompts) * repeats)
            measured = gold_by_prompt(subject, prompts, best_of, repeats, partial(progress.advance, bar))
            rewards[str(best_of)] = asyncio.run(measured)
    _write(output, rewards)


def read_policy(policy: str, path: Path) -> dict[Cell, list[float]]:
    """What `measure_policy` wrote."""
    return {(policy, int(n)): values for n, values in json.loads(path.read_text(encoding="utf-8")).items()}


def measure_agreement(reward_url: str, pairs: Path, output: Path) -> None:
    """Writes the reward model's agreement with held-out pairs."""
    _write(output, asdict(asyncio.run(reward_model_agreement(reward_url, list(read_jsonl(pairs))))))


def read_agreement(path: Path) -> Agreement:
    """What `measure_agreement` wrote."""
    return Agreement(**json.loads(path.read_text(encoding="utf-8")))


def read_kl(path: Path) -> Mean:
    """What `trainers kl` wrote: nats per sequence."""
    value = json.loads(path.read_text(encoding="utf-8"))["kl_nats_per_sequence"]
    return Mean(value["mean"], tuple(value["ci95"]))


def ask_once(subject: Subject, prompt: Prompt, best_of: int) -> str:
    """One answer."""

    async def asked() -> str:
        async with open_session() as session:
            return await ask(session, subject, prompt, best_of)

    return asyncio.run(asked())


def _write(path: Path, content: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
