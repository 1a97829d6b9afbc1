"""`python -m trainers ALGORITHM --flags`: finds the algorithm, runs it, turns errors into exit codes."""

import importlib
import os
import sys
from collections.abc import Sequence

from trainers.allocator import keep_freed_memory
from trainers.errors import translate
from trainers.launcher import count_processes, leave, process_index

# Name -> (module with `main(argv) -> int`, what it does). Modules are imported when chosen, so that help is
# instant.
ALGORITHMS = {
    "pretrain": ("trainers.tiny.pretrain", "a small base model from scratch, on the built-in small world"),
    "sft": ("trainers.sft", "supervised fine-tuning on demonstrations"),
    "reward": ("trainers.reward", "a reward model (or several) from preferences"),
    "dpo": ("trainers.dpo", "direct methods on preference pairs: DPO, IPO, SLiC-HF, ORPO"),
    "ppo": ("trainers.ppo", "PPO: a reward model's judgement of the policy's own answers"),
    "rloo": ("trainers.rloo", "RLOO and REINFORCE on the same rollouts, without a value model"),
    "cem": ("trainers.cem", "the cross-entropy method: maximum likelihood of the best of N own answers"),
    "robustness": ("trainers.robustness", "do two reward models, of half the preferences each, agree?"),
    "kl": ("trainers.kl", "how far a policy has gone from another, in nats per sequence"),
    "sample": ("trainers.sample", "answers from a policy for a file of prompts, through vLLM"),
}
SEVERAL_DEVICES = ("sft", "reward", "dpo", "ppo", "rloo", "cem")
"""What `accelerate launch -m trainers` takes."""


def usage() -> str:
    """The text of --help."""
    width = max(map(len, ALGORITHMS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in ALGORITHMS.items()]
    return "\n".join(
        ["usage: python -m trainers ALGORITHM [--flags]", "", *lines, "", "ALGORITHM --help lists its flags."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code (contract: 0, 2-7, 143; 130 for Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, flags = arguments[0], arguments[1:]
    if name not in ALGORITHMS:
        print(f"error: no algorithm {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if count_processes() > 1 and name not in SEVERAL_DEVICES:
        if process_index() == 0:
            print(
                f"error: {name} runs in one process: start it with `python -m trainers {name}`; on several "
                f"devices run {', '.join(SEVERAL_DEVICES)}",
                file=sys.stderr,
            )
        return 2
    # Read when torch is loaded. By default waiting OpenMP threads spin for milliseconds, and then one busy
    # neighbour on two cores then slows training to a quarter or less.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Also read then. Of the bfloat16 products oneDNN and torch's layer over it prepare and keep 1,024 shapes
    # each, and every batch has shapes of its own: half a GiB. Those of a pass or two are as fast.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "24")
    keep_freed_memory()
    try:
        return int(importlib.import_module(ALGORITHMS[name][0]).main(flags))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # full disks and memory come in many classes; what is neither goes on up
        known = translate(error)
        if known is None:
            raise
        where = f"process {process_index()}: " if process_index() > 0 else ""
        print(f"error: {where}{known}", file=sys.stderr)
        return known.exit_code


if __name__ == "__main__":
    leave(main())
