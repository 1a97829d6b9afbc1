"""What a load needs: slots, replicas, gateways and key-value cache, from figures that were measured.

    python -m loadtests.sizing --rate 20 --best-of 1,4,8 --prompt-tokens 200 --answer-tokens 150 \\
        --policy-tokens-per-second 9000 --answer-seconds 4 --reward-tokens-per-second 60000

Three laws. By Little's, what is under way is what comes in a second times how long it stays. The policy
generates every token of every candidate. The reward model reads a prompt once and each candidate's answer.
Throughputs are yours to measure on your machines (docs/deploy.md says how): none is guessed here.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from loadtests.arguments import count, positive, several, share
from loadtests.errors import LoadTestError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
SLOTS_OF_A_GATEWAY = 512
"""The gateway's default of max_concurrent_candidates."""
BUSY = 0.7
"""Share of what can be done that a plan uses: beyond it waiting grows quickly."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients ask for, and what servers were measured to do under it."""

    rate: float
    """Requests a second."""
    best_of: float
    """Candidates of a request, on average."""
    prompt_tokens: float
    answer_tokens: float
    answer_seconds: float
    """From the start of a candidate until its end, at this load."""
    policy_tokens_per_second: float
    """Of one vLLM replica, generated."""
    reward_tokens_per_second: float
    """Of one reward server, computed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What that needs."""

    candidates_under_way: float
    slots: int
    gateways: int
    generated_per_second: float
    policy_replicas: int
    judged_per_second: float
    reward_replicas: int
    cached_tokens: float
    """At most: a prompt once per request and every candidate's whole answer."""


def plan(load: Load, *, busy: float = BUSY, slots_of_a_gateway: int = SLOTS_OF_A_GATEWAY) -> Plan:
    """The three laws."""
    under_way = load.rate * load.best_of * load.answer_seconds
    generated = load.rate * load.best_of * load.answer_tokens
    judged = load.rate * (load.prompt_tokens + load.best_of * load.answer_tokens)
    slots = math.ceil(under_way / busy)
    return Plan(
        candidates_under_way=under_way,
        slots=slots,
        gateways=max(1, math.ceil(slots / slots_of_a_gateway)),
        generated_per_second=generated,
        policy_replicas=max(1, math.ceil(generated / (load.policy_tokens_per_second * busy))),
        judged_per_second=judged,
        reward_replicas=max(1, math.ceil(judged / (load.reward_tokens_per_second * busy))),
        cached_tokens=load.rate
        * load.answer_seconds
        * (load.prompt_tokens + load.best_of * load.answer_tokens),
    )


def cache_bytes_per_token(config: dict[str, object], dtype: str) -> int:
    """Keys and values of one token in all layers, from a model's config.json. Sliding windows need less.

    Raises:
        LoadTestError: it does not say how many layers and heads there are.
    """
    try:
        layers, heads, width = (
            int(str(config[key])) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        kv_heads = int(str(config.get("num_key_value_heads") or heads))
        head_dim = int(str(config.get("head_dim") or width // heads))
    except (KeyError, ValueError, ZeroDivisionError):
        raise LoadTestError("config.json does not say how many layers and heads the model has") from None
    return 2 * layers * kv_heads * head_dim * DTYPE_BYTES[dtype]


def report(found: Plan, bytes_per_token: int | None) -> str:
    """Lines for a person."""
    lines = [
        f"candidates under way    {found.candidates_under_way:,.0f}",
        f"candidate slots         {found.slots:,} (max_concurrent_candidates, over all gateways)",
        f"gateways                {found.gateways} (and one more, to lose one)",
        f"tokens generated        {found.generated_per_second:,.0f}/s",
        f"vLLM replicas           {found.policy_replicas}",
        f"tokens judged           {found.judged_per_second:,.0f}/s",
        f"reward servers          {found.reward_replicas}",
        f"tokens in the KV cache  {found.cached_tokens / found.policy_replicas:,.0f} per replica, at most",
    ]
    if bytes_per_token is not None:
        gib = found.cached_tokens / found.policy_replicas * bytes_per_token / 2**30
        lines.append(f"KV cache                {gib:,.1f} GiB per replica, at most")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Every flag; those of throughput have no default, for only a measurement knows them."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.sizing", description="What a load needs, from figures that were measured."
    )
    amounts = {
        "--rate": "requests a second",
        "--prompt-tokens": "of a request, on average",
        "--answer-tokens": "of a candidate, on average",
        "--answer-seconds": "of a candidate from its start to its end, at this load",
        "--policy-tokens-per-second": "that one vLLM replica generates",
        "--reward-tokens-per-second": "that one reward server computes",
    }
    for flag, text in amounts.items():
        parser.add_argument(flag, type=positive, required=True, metavar="X", help=text)
    parser.add_argument(
        "--best-of",
        type=_mean,
        required=True,
        metavar="N[,N...]",
        help="candidates of a request; of several, equally often, their mean counts",
    )
    parser.add_argument(
        "--busy",
        type=share,
        default=BUSY,
        metavar="SHARE",
        help="how much of what can be done is used (default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=count,
        default=SLOTS_OF_A_GATEWAY,
        metavar="N",
        help="max_concurrent_candidates of one gateway (default: %(default)s)",
    )
    parser.add_argument("--policy", type=Path, metavar="DIR", help="the checkpoint, for its KV cache's size")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=DTYPE_BYTES,
        default="bfloat16",
        help="of keys and values (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is needed; 2 for a checkpoint that does not say what it is."""
    args = build_parser().parse_args(argv)
    load = Load(**{name: getattr(args, name) for name in Load.__dataclass_fields__})
    try:
        size = (
            None if args.policy is None else cache_bytes_per_token(_config(args.policy), args.kv_cache_dtype)
        )
    except LoadTestError as error:
        print(f"sizing: {error}", file=sys.stderr)
        return 2
    print(report(plan(load, busy=args.busy, slots_of_a_gateway=args.slots), size))
    return 0


def _config(folder: Path) -> dict[str, object]:
    try:
        loaded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LoadTestError(f"{folder} has no config.json that can be read") from None
    return loaded if isinstance(loaded, dict) else {}


def _mean(text: str) -> float:
    return fmean(several(positive)(text))


if __name__ == "__main__":
    sys.exit(main())
