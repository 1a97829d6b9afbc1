"""The command line of `python -m gateway`, and the configuration it makes."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.config import ConfigError, GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.fields import ENGINE_FIELDS

LIMITS = Limits()
EPILOG = """\
examples:
  python -m gateway --policy-url http://127.0.0.1:8100 --reward-url http://127.0.0.1:8200
  python -m gateway up --policy MODEL --reward-model MODEL    (starts all three servers; see `up --help`)

A client asks for best-of-N with "best_of": 8 in the body, the header X-Best-Of: 8, or the model
NAME:best-of-8.
"""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where the gateway listens, and how long it may take to leave."""

    host: str
    port: int
    drain_s: int


def build_parser() -> argparse.ArgumentParser:
    """Every flag, with its default in the help text."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Serve OpenAI's API over a vLLM policy, with best-of-N by a reward model on any request.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server_flags(parser.add_argument_group("where to listen"))
    _add_policy_flags(parser.add_argument_group("the policy (a vLLM OpenAI server)"))
    _add_reward_flags(parser.add_argument_group("the reward model"))
    _add_request_flags(parser.add_argument_group("requests"))
    _add_limit_flags(parser.add_argument_group("limits"))
    return parser


def read_flags(argv: Sequence[str]) -> tuple[GatewayConfig, ServerOptions]:
    """Flags as a configuration. Exits with code 2 and one clear line where they make none."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return _config(args), ServerOptions(host=args.host, port=args.port, drain_s=args.drain_timeout)
    except ConfigError as error:
        parser.error(str(error))


def _config(args: argparse.Namespace) -> GatewayConfig:
    return GatewayConfig(
        policy=PolicyConfig(url=args.policy_url, name=args.policy_name, timeout_s=args.policy_timeout),
        reward=_reward(args),
        limits=Limits(
            max_best_of=args.max_best_of,
            max_candidates_per_request=args.max_candidates_per_request,
            max_concurrent_candidates=args.max_concurrent_candidates,
            max_queue=args.max_queue,
            max_queue_wait_s=args.max_queue_wait,
            max_body_bytes=args.max_body_bytes,
        ),
        default_best_of=args.default_best_of,
        on_reward_failure=args.on_reward_failure,
        heartbeat_s=args.heartbeat,
        allow_fields=frozenset(args.allow_field),
    )


def _reward(args: argparse.Namespace) -> RewardConfig | None:
    if args.reward_url is None:
        return None
    return RewardConfig(
        url=args.reward_url,
        name=args.reward_name,
        kind=args.reward_kind,
        offset=args.reward_offset,
        timeout_s=args.reward_timeout,
    )


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=_port, default=8000, help="port to listen on (default: %(default)s)")
    group.add_argument(
        "--drain-timeout",
        type=int,
        default=30,
        metavar="SECONDS",
        help="after SIGTERM, time for requests in flight to finish (default: %(default)s)",
    )


def _add_policy_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policy-url", required=True, metavar="URL", help="its address, e.g. http://127.0.0.1:8100"
    )
    group.add_argument(
        "--policy-name",
        metavar="NAME",
        help="the default model (default: the first in the policy's /v1/models)",
    )
    group.add_argument(
        "--policy-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest silence of the policy, and longest best-of-N generation (default: %(default)s)",
    )


def _add_reward_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reward-url", metavar="URL", help="its address; without it best_of above 1 is refused"
    )
    group.add_argument(
        "--reward-name", metavar="NAME", help="which of its models (default: the server's default)"
    )
    group.add_argument(
        "--reward-kind",
        choices=["score", "pooling"],
        default="score",
        help="score: this project's rm_server; pooling: a reward model on vLLM, raw logits"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--reward-offset",
        type=float,
        default=0.0,
        metavar="R",
        help="subtracted from pooling logits: reward_offset of alignment.json (default: %(default)s)",
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
