"""Our trainers against TRL's: the same random-weights model and rows, batches of 8, precision and threads, in
turns.

    python -m loadtests trainers [--methods ppo] [--sizes 3M]

TRL runs in environments of its own (runs/trl-VERSION, made when first needed: minutes), PPO in that of 1.12,
the last that had it. A run of each is a process; the first two steps do not count. Of TRL's ways to batch
demonstrations the faster counts: shuffled, its default, or grouped by length; its packing without cross-talk
is slower than both on a CPU. Tokens are those that are no padding, a pair's prompt counted with both answers
whoever computes it twice. PPO counts episodes, of steps of 32 in four epochs of one minibatch, rollouts
included; prompts have 8 to 48 tokens, answers end by chance or at 53. The share of the matrix-product rate
counts what tokens need at the least without sharing: six operations a weight of the layers and token, two
more for DPO's reference; of PPO, in each epoch six for policy and value model each, and once in four epochs
two each for drawing an answer, policy, reference, value and reward model. Attention and output head are not
counted. Losses are compared over 50 steps of one and the same batch; PPO's not, whose answers are drawn.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtests.bench import Bench, Flag
from loadtests.figures import Row, Run, repeat
from loadtests.judging import inner_size, plain_forward, random_judge
from loadtests.noise import other_work
from loadtests.peer_training import ACCUMULATION, BATCH, Cost, Work, ours, trl, watch, write_rows

SIZES = {"3M": (256, 3), "15M": (384, 8)}
"""Hidden size and layers; the names are of all parameters."""
METHODS = ("sft", "dpo", "reward", "ppo")
CURVE_STEPS = 50
PPO_STEPS = 4
"""At most: each is 32 episodes, seen four times."""
KINDS = {"policy": (True, True), "judge": (False, False), "plain judge": (False, True)}
"""Of models: whether it is a policy, and whether it is for plain text."""
Models = dict[tuple[str, str], Path]
"""By size and kind."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared."""

    algorithm: str
    size: str
    bf16: bool
    faster: float
    """At least so many times TRL's tokens (or episodes) per second."""
    memory: float
    """At most so many times TRL's."""

    @property
    def name(self) -> str:
        """As the rows begin."""
        return f"{self.algorithm} {self.size} {'bfloat16' if self.bf16 else 'float32'}"

    @property
    def rows(self) -> list[Row]:
        """Its figures."""
        unit = "episode" if self.algorithm == "ppo" else "token"
        return [
            Row(f"{self.name}: {unit}s/s, bonsai / TRL", "x", at_least=self.faster),
            Row(f"{self.name}: peak memory, bonsai / TRL", "x", at_most=self.memory),
            # What can be trusted on a machine with other work.
            Row(f"{self.name}: CPU per {unit}, TRL / bonsai", "x"),
            Row(f"{self.name}: {unit}s/s, bonsai", "1/s"),
            Row(f"{self.name}: share of the matrix-product rate, bonsai", "x"),
            Row(f"{self.name}: share of the matrix-product rate, TRL", "x"),
        ]

    def values(self, bonsai: Cost, peers: Sequence[Cost], flops: float) -> list[float]:
        """Of `rows`, in their order; the fastest of the peers counts."""
        peer = max(peers, key=lambda cost: cost.rate)
        share = operations_per_token(self) * bonsai.tokens / bonsai.units / flops
        return [
            bonsai.rate / peer.rate,
            bonsai.peak_bytes / peer.peak_bytes,
            bonsai.cpu_rate / max(cost.cpu_rate for cost in peers),
            bonsai.rate,
            bonsai.rate * share,
            peer.rate * share,
        ]


def operations_per_token(case: Case) -> float:
    """Of the layers' matrix products, forward and backward."""
    hidden, layers = SIZES[case.size]
    weights = layers * (4 * hidden**2 + 3 * hidden * inner_size(hidden))
    return {"dpo": 8, "ppo": 14.5}.get(case.algorithm, 6) * weights


CASES = (
    Case(algorithm="sft", size="3M", bf16=False, faster=2, memory=0.8),
    Case(algorithm="sft", size="15M", bf16=False, faster=1.6, memory=0.8),
    Case(algorithm="sft", size="15M", bf16=True, faster=2, memory=0.8),
    Case(algorithm="dpo", size="3M", bf16=False, faster=2, memory=0.8),
    Case(algorithm="dpo", size="15M", bf16=False, faster=1.7, memory=0.8),
    Case(algorithm="reward", size="3M", bf16=False, faster=1.4, memory=0.9),
    Case(algorithm="reward", size="15M", bf16=False, faster=1.4, memory=0.9),
    Case(algorithm="ppo", size="3M", bf16=False, faster=2, memory=0.8),
    Case(algorithm="ppo", size="15M", bf16=False, faster=1.5, memory=0.8),
    Case(algorithm="ppo", size="15M", bf16=True, faster=2.5, memory=0.8),
)
CURVES = {
    algorithm: Row(f"{algorithm}: largest difference of the losses from TRL's, {CURVE_STEPS} steps", "nats")
    for algorithm in ("sft", "dpo", "reward")
}
CURVE_SIZE = "3M"
ROWS = (
    *(row for case in CASES for row in case.rows),
    *(replace(row, at_most=1e-3, worst=True) for row in CURVES.values()),
)


def run(*, runs: int, steps: int, threads: int, methods: Sequence[str], sizes: Sequence[str]) -> list[Run]:
    """Make the models, then train with each; what does not depend on time, the losses, once."""
    with ExitStack() as open_:
        models = {
            (size, kind): open_.enter_context(
                random_judge(*SIZES[size], is_policy=is_policy, is_plain=is_plain)
            )
            for size in sizes
            for kind, (is_policy, is_plain) in KINDS.items()
        }
        curves = compare_curves(models, threads, methods) if CURVE_SIZE in sizes else {}
        cases = [case for case in CASES if case.algorithm in methods and case.size in sizes]
        return repeat(runs, lambda: once(models, cases, steps, threads, curves))


def once(models: Models, cases: Sequence[Case], steps: int, threads: int, curves: Mapping[str, float]) -> Run:
    """Each case, ours and TRL's by turns."""
    signs = other_work()
    values = dict(curves)
    with TemporaryDirectory() as name:
        for case in cases:
            work = prepare(Path(name) / case.name.replace(" ", "-"), models, case, steps, threads)
            dtype = "bfloat16" if case.bf16 else "float32"
            with plain_forward(models[case.size, "judge"], dtype, threads) as plain:
                flops = plain.ask([])["flops"]
            orders = ("random", "group_by_length") if case.algorithm == "sft" else ("random",)
            bonsai = train(work, "bonsai", ours)
            peers = [train(work, order, partial(trl, order=order)) for order in orders]
            found = case.values(bonsai, peers, flops)
            values |= {row.figure: value for row, value in zip(case.rows, found, strict=True)}
    return Run(values, signs)


def compare_curves(models: Models, threads: int, methods: Sequence[str]) -> dict[str, float]:
    """The largest distance of two losses of one step, of each method that has such a figure."""
    distances = {}
    with TemporaryDirectory() as name:
        for algorithm in (method for method in methods if method in CURVES):
            case = Case(algorithm=algorithm, size=CURVE_SIZE, bf16=False, faster=1, memory=1)
            work = prepare(Path(name) / algorithm, models, case, CURVE_STEPS, threads, BATCH)
            bonsai = train(work, "bonsai", ours)
            peer = train(work, "sequential", partial(trl, order="sequential"))
            pairs = zip(bonsai.losses, peer.losses, strict=True)
            distances[CURVES[algorithm].figure] = max(abs(one - other) for one, other in pairs)
    return distances


def prepare(
    out: Path,
    models: Models,
    case: Case,
    steps: int,
    threads: int,
    rows: int | None = None,
) -> Work:
    """Writes the rows: enough for one epoch, if not said otherwise."""
    out.mkdir()
    is_ppo = case.algorithm == "ppo"
    write_rows(out / "rows.jsonl", case.algorithm, rows or BATCH * (ACCUMULATION if is_ppo else 1) * steps)
    return Work(
        algorithm=case.algorithm,
        model=models[case.size, "judge" if case.algorithm == "reward" else "policy"],
        data=out / "rows.jsonl",
        out=out,
        bf16=case.bf16,
        threads=threads,
        steps=min(steps, PPO_STEPS) if is_ppo else steps,
        judge=models[case.size, "plain judge"] if is_ppo else None,
    )


def train(work: Work, name: str, command: Callable[[Work], list[str]]) -> Cost:
    """One process from start to end."""
    at = work.at(name)
    return watch(command(at), at)


BENCH = Bench(
    name="trainers",
    help="SFT, DPO, reward models and PPO against TRL",
    flags=(
        Flag("runs", 1, "their mean counts, or the median of more"),
        Flag("steps", 12, f"of each training run; of PPO at most {PPO_STEPS}"),
        Flag("threads", len(os.sched_getaffinity(0)), "of each training run"),
        Flag("methods", METHODS, "what to measure; other figures stay as they were"),
        Flag("sizes", tuple(SIZES), "of the models"),
    ),
    rows=ROWS,
    run=run,
    takes_s=1200,
)
