r"""Calibrates a model of rm_server on answers that it should find usual, and writes what --calibration reads.

    python -m rm_server.calibrate --model judge=runs/seed-1+runs/seed-2 --data samples.jsonl \
        --output judge.json
    python -m rm_server --model judge=runs/seed-1+runs/seed-2 --calibration judge=judge.json

For ensembles, whose spread no checkpoint knows, and for checkpoints of others, which say nothing. A line of
the data is a conversation, {"messages": [...]}, whose last turn is judged, or a prompt with answers,
{"prompt" or "messages": [...], "responses": [...]}, as `trainers sample` writes them: best from the policy
that will be judged. 999 answers or more, or the rules' outermost quantiles are just the least and greatest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from rm_server.assembly import Assembly, builder
from rm_server.config import Config, Parser, parse_args
from rm_server.ensemble import Method, combine, spread
from rm_server.errors import CheckpointError, ConfigError, RmServerError, StartError
from rm_server.judge import Judge, Material, Rewards, Wish
from rm_server.metrics import Metrics
from rm_server.protocol import Conversation, Message
from rm_server.served_model import Timings
from rm_server.shelf import Shelf
from rm_server.threads import threads

AT_ONCE = 64  # answers in one request
LEVELS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 0.999)


class Row(msgspec.Struct):
    """A line of the data; other columns are left alone."""

    messages: list[Message] | None = None
    prompt: list[Message] | str | None = None
    responses: list[str] | None = None

    def conversations(self) -> list[Conversation]:
        """Raises ValueError where there is nothing to judge."""
        prompt = self.messages if self.prompt is None else self.prompt
        if isinstance(prompt, str):
            prompt = [Message("user", prompt)]
        if not prompt:
            raise ValueError
        turns = [message.as_turn() for message in prompt]
        if self.responses is None and self.prompt is None:
            return [turns]
        return [[*turns, {"role": "assistant", "content": text}] for text in self.responses or ()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = Parser(
        prog="python -m rm_server.calibrate",
        description="Calibrates a model on usual answers. All flags of python -m rm_server hold, too.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, required=True, help="answers, a .jsonl file")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    try:
        own, others = parser.parse_known_args(arguments)
        config = parse_args(others)
        write(own, config)
    except (StartError, RmServerError) as error:
        print(f"rm_server: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, StartError) else 3
    return 0


def write(own: argparse.Namespace, config: Config) -> None:
    """Raises StartError, RmServerError."""
    if len(config.models) > 1:
        raise ConfigError("calibrate one --model at a time")
    conversations = read(own.data)
    with threads(config.threads) as in_threads:
        metrics = Metrics()
        assembly = Assembly(builder(config, metrics, in_threads), config, metrics)
        judge = assembly.judge(config.models[0])
        members = asyncio.run(score(judge, metrics, conversations))
    found = describe(judge.version, members, config.uncertainty_lambda)
    try:
        own.output.write_text(json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {own.output}: {error.strerror}") from error
    print(f"calibrated {judge.name} version {judge.version} on {len(conversations)} answers: {own.output}")


def read(path: Path) -> list[Conversation]:
    """Raises CheckpointError, whose exit code is that of bad data, too."""
    found: list[Conversation] = []
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                found += msgspec.json.decode(line, type=Row).conversations()
            except (msgspec.MsgspecError, ValueError) as error:
                what = f"{path}, line {number}: no messages, no prompt with responses"
                raise CheckpointError(what) from error
    except OSError as error:
        raise CheckpointError(f"{path}: not readable") from error
    if len(found) < 2:
        raise CheckpointError(f"{path}: holds {len(found)} answers; at least 2 are wanted, better 999")
    return found


async def score(judge: Judge, metrics: Metrics, conversations: Sequence[Conversation]) -> dict[str, Rewards]:
    """Every member's rewards of every answer. Raises RmServerError."""
    members: dict[str, Rewards] = {}
    async with Shelf([judge], metrics).at_work():
        for start in range(0, len(conversations), AT_ONCE):
            material = Material(conversations[start : start + AT_ONCE])
            judgement = await judge.judge(material, Wish(), Timings())
            for name, rewards in judgement.members.items():
                members.setdefault(name, []).extend(rewards)
    return members


def describe(version: str, members: Mapping[str, Rewards], uncertainty_lambda: float) -> dict[str, Any]:
    """What --calibration reads. Raises CheckpointError where a reward is not finite."""
    columns = list(zip(*members.values(), strict=True))
    methods: Sequence[Method] = get_args(Method) if len(members) > 1 else ("mean",)
    return {
        "version": version,
        "uncertainty_lambda": uncertainty_lambda,
        "scores": {
            method: distribution([combine(column, method, uncertainty_lambda) for column in columns])
            for method in methods
        },
        "spread": distribution([spread(column) for column in columns]) if len(members) > 1 else None,
    }


def distribution(values: Rewards) -> dict[str, Any]:
    """As the trainer stores it, with Weibull's quantiles (see calibration). Raises CheckpointError."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise CheckpointError(f"{len(values) - len(known)} answers have no finite reward")
    quantiles = np.quantile(known, LEVELS, method="weibull").tolist()
    return {
        "samples": len(known),
        "mean": float(np.mean(known)),
        "std": float(np.std(known)),
        "quantiles": {str(level): round(at, 6) for level, at in zip(LEVELS, quantiles, strict=True)},
    }


if __name__ == "__main__":
    sys.exit(main())
