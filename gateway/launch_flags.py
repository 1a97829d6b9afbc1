"""The command line of `python -m gateway up`."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EPILOG = """\
examples:
  python -m gateway up --policy runs/demo/dpo --reward-model runs/demo/reward
  python -m gateway up --policy ORG/NAME --reward-model ORG/NAME --default-best-of 4
  python -m gateway up --policy-url http://127.0.0.1:8100 --reward-model runs/demo/reward
  python -m gateway up --policy runs/demo/dpo --vllm-args "--max-num-seqs 64 --seed 1"

A model is a checkpoint folder or a hub's name. Folders with a manifest.json are verified before use.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every flag, as given."""

    policy: str | None
    policy_url: str | None
    reward_model: str | None
    reward_url: str | None
    host: str
    port: int
    policy_port: int
    reward_port: int
    served_model_name: str | None
    dtype: str
    reward_dtype: str | None
    max_model_len: int | None
    kv_cache_gib: int
    default_best_of: int
    vllm_args: str
    reward_args: str
    gateway_args: str
    log_dir: Path
    start_timeout: float
    ready_file: Path | None


def read_flags(argv: Sequence[str]) -> Options:
    """Flags as options; exits with code 2 and one clear line where they make no sense together."""
    parser = build_parser()
    options = Options(**vars(parser.parse_args(argv)))
    if options.default_best_of > 1 and not (options.reward_model or options.reward_url):
        parser.error("--default-best-of above 1 needs --reward-model or --reward-url")
    return options


def build_parser() -> argparse.ArgumentParser:
    """Every flag, with its default in the help text."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway up",
        description="Start vLLM with a policy, a reward-model server and the gateway as one local stack.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_flags(parser)
    _add_address_flags(parser.add_argument_group("where to listen"))
    _add_engine_flags(parser.add_argument_group("the engines"))
    _add_stack_flags(parser.add_argument_group("the stack"))
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    policy = parser.add_argument_group("the policy").add_mutually_exclusive_group(required=True)
    policy.add_argument("--policy", metavar="MODEL", help="the model that answers")
    policy.add_argument(
        "--policy-url", metavar="URL", help="or the address of a vLLM server that runs already"
    )
    reward = parser.add_argument_group("the reward model").add_mutually_exclusive_group()
    reward.add_argument(
        "--reward-model", metavar="MODEL", help="the model that judges; without one no best-of-N"
    )
    reward.add_argument(
        "--reward-url", metavar="URL", help="or the address of a reward server that runs already"
    )


def _add_address_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="the gateway's address (default: %(default)s)")
    for flag, default, who in (
        ("--port", 8000, "the gateway's port"),
        ("--policy-port", 0, "vLLM's port, on loopback"),
        ("--reward-port", 0, "the reward server's port, on loopback"),
    ):
        text = f"{who}; 0 means any free one (default: %(default)s)"
        group.add_argument(flag, type=_port, default=default, metavar="PORT", help=text)


def _add_engine_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--served-model-name", metavar="NAME", help="the policy's name to clients (default: its folder's)"
    )
    group.add_argument(
        "--dtype",
        default="auto",
        help="the policy's number format; float32 makes seeded answers repeat exactly (default: %(default)s)",
    )
    group.add_argument("--reward-dtype", metavar="DTYPE", help="the reward model's (default: its server's)")
    group.add_argument(
        "--max-model-len",
        type=_positive,
        metavar="TOKENS",
        help="longest conversation (default: the model's)",
    )
    group.add_argument(
        "--kv-cache-gib",
        type=_positive,
        default=1,
        metavar="GIB",
        help="memory for vLLM's key-value cache on a machine without a GPU (default: %(default)s)",
    )
    group.add_argument(
        "--vllm-args", type=_words, default="", metavar='"ARGS"', help="more arguments for vLLM; they win"
    )
    group.add_argument(
        "--reward-args",
        type=_words,
        default="",
        metavar='"ARGS"',
        help="more arguments for `python -m rm_server`; they win",
    )


def _add_stack_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--default-best-of",
        type=_positive,
        default=1,
        metavar="N",
        help="best_of of requests that ask for none (default: %(default)s)",
    )
    group.add_argument(
        "--gateway-args",
        type=_words,
        default="",
        metavar='"ARGS"',
        help="more arguments for `python -m gateway`, e.g. its limits",
    )
    group.add_argument(
        "--log-dir",
        type=Path,
        default=Path("runs/up"),
        metavar="DIR",
        help="where policy.log, reward.log and gateway.log go (default: %(default)s)",
    )
    group.add_argument(
        "--start-timeout",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="longest wait for the models, and then for the gateway (default: %(default)s)",
    )
    group.add_argument(
        "--ready-file",
        type=Path,
        metavar="FILE",
        help="there while all is ready, for programs that wait: JSON with the url and process ids",
    )


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number of 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return seconds


def _words(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot be split into words ({error})") from error
    return text
