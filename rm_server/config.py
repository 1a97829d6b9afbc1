"""The command line as a frozen configuration: every field is read, anything else refused (exit 2)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, get_args

from rm_server.errors import ConfigError
from rm_server.reward_model import DType

MIB = 2**20
# On a CPU, throughput is flat from 300 to 1000 tokens and falls by a third towards 4000, where what passes
# between layers no longer fits the caches (docs/reward-server.md has the figures); a GPU wants thousands.
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
_NAMED = re.compile(r"([\w.:-]+)=(.+)", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and the name that requests call it by."""

    name: str
    source: str


@dataclass(frozen=True)
class Config:
    """What `python -m rm_server` was asked for."""

    models: tuple[ModelSource, ...]
    host: str
    port: int
    dtype: DType
    threads: int
    max_batch_tokens: int | None  # None: BATCH_TOKENS of the device
    max_queue_tokens: int
    max_length: int | None
    max_body_bytes: int


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see python -m rm_server --help)")


def parse_args(arguments: Sequence[str]) -> Config:
    """Reads the command line. Raises ConfigError."""
    parser = _Parser(
        prog="python -m rm_server", description="Serves reward models over HTTP.", allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="checkpoint folder or hub name; may be repeated, the first is the default (NAME: its last part)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8001, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=get_args(DType), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=_usable_cores(),
        help="cores for a forward pass (default: all usable, %(default)s)",
    )
    parser.add_argument(
        "--max-batch-tokens",
        type=_positive,
        help="tokens in a forward pass, padding included; one longer text goes alone (default: "
        + ", ".join(f"{tokens} on {device}" for device, tokens in BATCH_TOKENS.items())
        + ")",
    )
    parser.add_argument(
        "--max-queue-tokens",
        type=_positive,
        default=262_144,
        help="tokens that may wait, per model; beyond them requests get a 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=_positive,
        help="longest conversation in tokens (default: all that the model reads)",
    )
    parser.add_argument(
        "--max-body-bytes", type=_positive, default=4 * MIB, help="largest request (default: %(default)s)"
    )
    values = vars(parser.parse_args(arguments))
    models = tuple(parse_model(text) for text in values.pop("model"))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models are called {_first_repeated(names)}: name them, --model NAME=DIR")
    return Config(models=models, **values)


def parse_model(text: str) -> ModelSource:
    """`NAME=DIR`, or `DIR`, whose last part is then the name."""
    named = _NAMED.fullmatch(text)
    if named and not Path(text).exists():
        return ModelSource(named[1], named[2])
    return ModelSource(Path(text).resolve().name if Path(text).exists() else Path(text).name, text)


def _first_repeated(names: list[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


# argparse names the type in its message: "invalid positive number value: ..."
_positive.__name__ = "positive number"
_port.__name__ = "port"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))
