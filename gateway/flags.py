"""The command line of `python -m gateway`, and the configuration it makes.

One policy and one reward model fit into flags; several of each, aliases and the rest take a file.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gateway import config_file
from gateway.config import ConfigError, GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.fields import ENGINE_FIELDS
from gateway.logs import LogOptions, add_log_flags, log_options

LIMITS = Limits()
MAX_WORKERS = 256
DAY_S = 86_400
POLICY_GROUP = "the policy (a vLLM OpenAI server)"
REWARD_GROUP = "the reward model"
FILE_GROUPS = {POLICY_GROUP, REWARD_GROUP, "requests", "access", "limits", "traces"}
EPILOG = """\
examples:
  python -m gateway --policy-url http://127.0.0.1:8100 --reward-url http://127.0.0.1:8200
  python -m gateway --config gateway.yaml    (several policies and reward models: docs/configuration.md)
  python -m gateway check --config gateway.yaml                      (is it right, and do the servers agree?)
  python -m gateway keys --help                 (API keys and their limits)
  python -m gateway up --policy MODEL --reward-model MODEL    (starts all three servers; see `up --help`)

A client asks for best-of-N with "best_of": 8 in the body, the header X-Best-Of: 8, or the model
NAME:best-of-8.
"""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where the gateway listens, in how many processes, and how long it may take to leave."""

    host: str
    port: int
    workers: int
    drain_delay_s: float
    """Seconds after SIGTERM in which new requests are still answered."""
    drain_s: float
    """Seconds after that for requests in flight."""
    log: LogOptions


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the fifty lines of usage are for --help."""

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        self.exit(2, f"{self.prog}: {message} (--help lists every flag)\n")


def build_parser(prog: str = "python -m gateway") -> argparse.ArgumentParser:
    """Every flag, with its default in the help text."""
    parser = Parser(
        prog=prog,
        description="Serve OpenAI's API over a vLLM policy, with best-of-N by a reward model on any request.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server_flags(parser.add_argument_group("where to listen"))
    add_log_flags(parser.add_argument_group("log"))
    _add_policy_flags(parser.add_argument_group(POLICY_GROUP))
    _add_reward_flags(parser.add_argument_group(REWARD_GROUP))
    _add_request_flags(parser.add_argument_group("requests"))
    _add_access_flags(parser.add_argument_group("access"))
    _add_limit_flags(parser.add_argument_group("limits"))
    parser.add_argument_group("traces").add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="where OpenTelemetry traces go (default: there are none)",
    )
    return parser


Load = Callable[[], GatewayConfig]
"""Makes the configuration, again at each SIGHUP."""
ConfigT = TypeVar("ConfigT", PolicyConfig, RewardConfig, Limits, GatewayConfig)
_KEY = re.compile(r"`(\w+)`")


def read_flags(argv: Sequence[str], prog: str = "python -m gateway") -> tuple[Load, ServerOptions]:
    """Flags as what makes the configuration. Exits with code 2 and one clear line where they make none."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if (args.config is None) == (args.policy_url is None):
        parser.error("give either --policy-url or --config FILE")
    if args.config is not None:
        _check_alone(parser, args)
    load: Load = partial(_config, args) if args.config is None else partial(config_file.load, args.config)
    try:
        load()
    except ConfigError as error:
        parser.error(str(error))
    return load, _server_options(args)


def _server_options(args: argparse.Namespace) -> ServerOptions:
    return ServerOptions(
        host=args.host,
        port=args.port,
        workers=args.workers,
        drain_delay_s=args.drain_delay,
        drain_s=args.drain_timeout,
        log=log_options(args),
    )


def _check_alone(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What stands in the file must not stand in flags too: which would win?"""
    for group in parser._action_groups:
        if group.title not in FILE_GROUPS:
            continue
        for action in group._group_actions:
            if getattr(args, action.dest) != action.default:
                parser.error(f"{action.option_strings[0]} belongs into the file that --config names")


def _config(args: argparse.Namespace) -> GatewayConfig:
    policy = _made(
        "policy-",
        PolicyConfig,
        urls=tuple(args.policy_url),
        name=args.policy_name,
        timeout_s=args.policy_timeout,
        api_key_env=args.policy_api_key_env,
        control_text=args.control_text,
    )
    limits = _made(
        "",
        Limits,
        max_best_of=args.max_best_of,
        max_candidates_per_request=args.max_candidates_per_request,
        max_concurrent_candidates=args.max_concurrent_candidates,
        max_queue=args.max_queue,
        max_queue_wait_s=args.max_queue_wait,
        max_body_bytes=args.max_body_bytes,
    )
    return _made(
        "",
        GatewayConfig,
        policies=(policy,),
        rewards=_rewards(args),
        limits=limits,
        default_best_of=args.default_best_of,
        on_reward_failure=args.on_reward_failure,
        heartbeat_s=args.heartbeat,
        allow_fields=frozenset(args.allow_field),
        keys_file=args.keys_file,
        public_metrics=args.public_metrics,
        cors_origins=tuple(args.cors_origin),
        otlp_traces_endpoint=args.otlp_traces_endpoint,
    )


def _rewards(args: argparse.Namespace) -> tuple[RewardConfig, ...]:
    if args.reward_url is None:
        return ()
    return (
        _made(
            "reward-",
            RewardConfig,
            urls=tuple(args.reward_url),
            model=args.reward_name,
            kind=args.reward_kind,
            offset=args.reward_offset,
            template=args.reward_template,
            timeout_s=args.reward_timeout,
            api_key_env=args.reward_api_key_env,
        ),
    )


def _made(prefix: str, make: type[ConfigT], **fields: Any) -> ConfigT:
    """A part of the configuration; its complaints name flags instead of keys."""
    try:
        return make(**fields)
    except ConfigError as error:
        raise ConfigError(_KEY.sub(lambda key: _flag(prefix, key[1]), str(error))) from None


def _flag(prefix: str, key: str) -> str:
    name = {"urls": "url", "model": "name"}.get(key, key).removesuffix("_s").replace("_", "-")
    return f"--{prefix}{name}"


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a YAML file instead of the flags below; SIGHUP reloads it",
    )
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=_port, default=8000, help="port to listen on (default: %(default)s)")
    group.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="K",
        help="processes that share the port and the limits (default: %(default)s)",
    )
    group.add_argument(
        "--drain-delay",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="after SIGTERM, time in which the gateway is not ready but answers new requests, until load"
        " balancers have noticed (default: %(default)s)",
    )
    group.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="after that, time for requests in flight to finish (default: %(default)s)",
    )


def _add_policy_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policy-url",
        action="append",
        metavar="URL",
        help="its address, e.g. http://127.0.0.1:8100; once per replica",
    )
    group.add_argument(
        "--policy-name",
        metavar="NAME",
        help="the one model to offer (default: all in the policy's /v1/models, the first being the default)",
    )
    group.add_argument(
        "--policy-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest silence of the policy, and longest best-of-N generation (default: %(default)s)",
    )
    group.add_argument(
        "--policy-api-key-env", metavar="VARIABLE", help="environment variable with the key that it wants"
    )
    group.add_argument(
        "--control-text",
        choices=["neutralise", "refuse", "allow"],
        default="neutralise",
        help="control tokens that clients write into messages as text (default: %(default)s)",
    )


def _add_reward_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reward-url",
        action="append",
        metavar="URL",
        help="its address, once per replica; without one best_of above 1 is refused",
    )
    group.add_argument(
        "--reward-name", metavar="NAME", help="which of its models (default: the server's default)"
    )
    group.add_argument(
        "--reward-kind",
        choices=["score", "pooling", "get_reward"],
        default="score",
        help="score: this project's rm_server; pooling: a reward model on vLLM; get_reward: an OpenRLHF"
        " server; the last two give raw rewards (default: %(default)s)",
    )
    group.add_argument(
        "--reward-offset",
        type=float,
        default=0.0,
        metavar="R",
        help="subtracted from raw rewards: reward_offset of alignment.json (default: %(default)s)",
    )
    group.add_argument(
        "--reward-template",
        metavar="JINJA",
        help="for get_reward: renders `messages` to the text that is judged; @FILE reads it from a file",
    )
    group.add_argument(
        "--reward-api-key-env", metavar="VARIABLE", help="environment variable with the key that it wants"
    )
    group.add_argument(
        "--reward-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="longest call to the reward model (default: %(default)s)",
    )
    group.add_argument(
        "--on-reward-failure",
        choices=["error", "first"],
        default="error",
        help="without rewards: answer 503, or the first candidates marked degraded (default: %(default)s)",
    )


def _add_request_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--default-best-of",
        type=int,
        default=1,
        metavar="N",
        help="best_of of requests that ask for none (default: %(default)s)",
    )
    group.add_argument(
        "--heartbeat",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="between signs of life on a best-of-N stream (default: %(default)s)",
    )
    group.add_argument(
        "--allow-field",
        action="append",
        default=[],
        choices=sorted(ENGINE_FIELDS),
        metavar="FIELD",
        help="let clients send a field that reaches into the engine; may be given again. One of: "
        + ", ".join(sorted(ENGINE_FIELDS)),
    )


def _add_access_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--keys-file", metavar="FILE", help="API keys (see `keys --help`); without it everybody may come in"
    )
    group.add_argument(
        "--public-metrics", action="store_true", help="with --keys-file: /metrics and /version need no key"
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin call the gateway; may be given again (default: none)",
    )


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
    limits: list[tuple[str, type, float, str]] = [
        ("--max-best-of", int, LIMITS.max_best_of, "largest best_of"),
        (
            "--max-candidates-per-request",
            int,
            LIMITS.max_candidates_per_request,
            "most samples of one request: best_of (or n) times its prompts",
        ),
        (
            "--max-concurrent-candidates",
            int,
            LIMITS.max_concurrent_candidates,
            "most samples generated at once, over all requests",
        ),
        (
            "--max-queue",
            int,
            LIMITS.max_queue,
            "most requests waiting for their turn; the next is answered 503",
        ),
        ("--max-queue-wait", float, LIMITS.max_queue_wait_s, "longest wait for a turn in seconds; then 503"),
        ("--max-body-bytes", int, LIMITS.max_body_bytes, "largest request body"),
    ]
    for flag, kind, default, text in limits:
        group.add_argument(
            flag, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _workers(text: str) -> int:
    workers = int(text) if text.isdecimal() else 0
    if not 1 <= workers <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"a number of processes is one from 1 to {MAX_WORKERS}")
    return workers


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= DAY_S:
        raise argparse.ArgumentTypeError("a time is a number of seconds from 0 to 86400")
    return seconds
