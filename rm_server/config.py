"""The command line as a frozen configuration: every field is read, anything else refused (exit 2)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, get_args
from urllib.parse import urlsplit

from rm_server.ensemble import UNCERTAINTY_LAMBDA, Method
from rm_server.errors import ConfigError
from rm_server.reward_model import DType

MIB = 2**20
# On a CPU, throughput is flat from 300 to 1000 tokens and falls by a third towards 4000, where what passes
# between layers no longer fits the caches (docs/reward-server.md has the figures); a GPU wants thousands.
BATCH_TOKENS = {"cpu": 1536, "cuda": 16_384}
_NAMED = re.compile(r"([\w.:-]+)=(.+)", re.ASCII)
_ON_VLLM = re.compile(r"(.+)@(https?://.+)")


@dataclass(frozen=True)
class MemberSource:
    """A checkpoint, what it is called among the members of its model, and the vLLM that computes it, if one
    does."""

    name: str
    source: str
    vllm_url: str | None = None


@dataclass(frozen=True)
class ModelSource:
    """The name that requests call a model by, and its checkpoints: several are an ensemble."""

    name: str
    members: tuple[MemberSource, ...]
    calibration: Path | None = None


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
    prompt_cache_bytes: int
    max_body_bytes: int
    ensemble: Method
    uncertainty_lambda: float
    length_penalty: float
    drain_delay: float
    otlp_traces_endpoint: str | None


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def parse_args(arguments: Sequence[str]) -> Config:
    """Reads the command line. Raises ConfigError."""
    parser = Parser(
        prog="python -m rm_server", description="Serves reward models over HTTP.", allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]DIR[@URL][+DIR...]",
        help="checkpoint folder or hub name; several joined by + are an ensemble; @URL: computed by the vLLM "
        "there; may be repeated, the first is the default (NAME: the last part of DIR)",
    )
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="what python -m rm_server.calibrate wrote about this model (default: what its checkpoint says)",
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
        "--prompt-cache-bytes",
        type=_size,
        default=256 * MIB,
        help="keys and values of prompts kept for later requests, per model; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-bytes", type=_positive, default=4 * MIB, help="largest request (default: %(default)s)"
    )
    _add_judging(parser)
    parser.add_argument(
        "--drain-delay",
        type=_amount,
        default=0.0,
        metavar="SECONDS",
        help="after SIGTERM, time in which the server is not ready but answers new requests, until load "
        "balancers have noticed (default: %(default)s)",
    )
    parser.add_argument(
        "--otlp-traces-endpoint",
        type=_address,
        metavar="URL",
        help="where OpenTelemetry traces go, by OTLP over HTTP (default: there are none)",
    )
    values = vars(parser.parse_args(arguments))
    models = tuple(parse_model(text) for text in values.pop("model"))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models are called {_first_repeated(names)}: name them, --model NAME=DIR")
    return Config(models=_with_calibrations(models, values.pop("calibration")), **values)


def _add_judging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ensemble",
        choices=get_args(Method),
        default="mean",
        help="how members become one reward where a request does not say (default: %(default)s)",
    )
    parser.add_argument(
        "--uncertainty-lambda",
        type=_amount,
        default=UNCERTAINTY_LAMBDA,
        help="weight of the variance in uncertainty_weighted (default: %(default)s)",
    )
    parser.add_argument(
        "--length-penalty",
        type=_amount,
        default=0.0,
        help="taken off a /score for each token of the response, where a request does not say (default: "
        "%(default)s)",
    )


def parse_model(text: str) -> ModelSource:
    """`NAME=DIR`, or `DIR`, whose last part is then the name; for DIR also DIR@URL, and several with +."""
    named = _NAMED.fullmatch(text)
    if named and not Path(text).exists():
        name, text = named[1], named[2]
    else:
        name = _last_part(text)
    parts = [text] if Path(text).exists() else text.split("+")
    if not all(parts):
        raise ConfigError(f"--model {text}: a + stands between two checkpoints")
    return ModelSource(name, tuple(_name_members(name, parts)))


def _name_members(name: str, parts: list[str]) -> Iterator[MemberSource]:
    """A member is called by its folder where that tells it from the others, else by its place."""
    on_vllm = [_ON_VLLM.fullmatch(part) for part in parts]
    sources = [match[1] if match else part for match, part in zip(on_vllm, parts, strict=True)]
    names = [name] if len(parts) == 1 else [_last_part(source) for source in sources]
    if len(set(names)) < len(names):
        names = [f"{name}-{place}" for place in range(1, len(parts) + 1)]
    for name_, source, match in zip(names, sources, on_vllm, strict=True):
        yield MemberSource(name_, source, match[2].rstrip("/") if match else None)


def _last_part(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else Path(source).name


def _with_calibrations(models: tuple[ModelSource, ...], given: list[str]) -> tuple[ModelSource, ...]:
    files: dict[str, Path] = {}
    for text in given:
        named = _NAMED.fullmatch(text)
        if not named or named[1] not in {model.name for model in models}:
            raise ConfigError(f"--calibration {text}: give NAME=FILE with the name of a --model")
        files[named[1]] = Path(named[2])
    return tuple(replace(model, calibration=files.get(model.name)) for model in models)


def _first_repeated(names: list[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _size(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise argparse.ArgumentTypeError("an address is like http://127.0.0.1:4318/v1/traces, without a key")
    return text


# argparse names the type in its message: "invalid positive number value: ..."
_positive.__name__ = "positive number"
_amount.__name__ = "amount"
_size.__name__ = "size"
_port.__name__ = "port"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))
