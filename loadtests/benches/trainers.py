"""Our trainers against TRL's: the same random-weights model and rows, batches of 8, precision and threads, in
turns.

    python -m loadtests trainers

TRL runs in an environment of its own (runs/trl-VERSION, made when it is first needed: minutes). A run of each
is a process; the first two steps do not count. Of TRL's ways to batch demonstrations the faster counts:
shuffled, its default, or grouped by length; its packing without cross-talk is slower than both on a CPU.
Tokens are those that are no padding, a pair's prompt counted with both answers whoever computes it twice. The
share of the matrix-product rate counts what these tokens need at the least without sharing: six operations a
weight of the layers and token, two more for DPO's reference; attention and output head are not counted.
Losses are compared over 50 steps of one and the same batch.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtests.bench import RUNS, Bench, Flag
from loadtests.figures import Row, Run, repeat
from loadtests.judging import inner_size, plain_forward, random_judge
from loadtests.noise import MAX_OTHER_WORK, busy_share
from loadtests.peer_training import BATCH, Cost, Work, ours, trl, watch, write_rows

SIZES = {"3M": (256, 3), "15M": (384, 8)}
"""Hidden size and layers; the names are of all parameters."""
CURVE_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared."""

    algorithm: str
    size: str
    bf16: bool
    faster: float
    """At least so many times TRL's tokens per second."""
    memory: float
    """At most so many times TRL's."""

    @property
    def name(self) -> str:
        """As the rows begin."""
        return f"{self.algorithm} {self.size} {'bfloat16' if self.bf16 else 'float32'}"

    @property
    def rows(self) -> list[Row]:
        """Its figures."""
        return [
            Row(f"{self.name}: tokens/s, bonsai / TRL", "x", at_least=self.faster),
            Row(f"{self.name}: peak memory, bonsai / TRL", "x", at_most=self.memory),
            # What can be trusted on a machine with other work.
            Row(f"{self.name}: CPU per token, TRL / bonsai", "x"),
            Row(f"{self.name}: tokens/s, bonsai", "1/s"),
            Row(f"{self.name}: share of the matrix-product rate, bonsai", "x"),
            Row(f"{self.name}: share of the matrix-product rate, TRL", "x"),
        ]

    def values(self, bonsai: Cost, peers: Sequence[Cost], flops: float) -> list[float]:
        """Of `rows`, in their order; the fastest of the peers counts."""
        peer = max(peers, key=lambda cost: cost.rate)
        share = operations_per_token(self) / flops
        return [
            bonsai.rate / peer.rate,
            bonsai.peak_bytes / peer.peak_bytes,
            bonsai.cpu_rate / max(cost.cpu_rate for cost in peers),
            bonsai.rate,
            bonsai.rate * share,
            peer.rate * share,
        ]


def operations_per_token(case: Case) -> int:
    """Of the layers' matrix products, forward and backward."""
    hidden, layers = SIZES[case.size]
    weights = layers * (4 * hidden**2 + 3 * hidden * inner_size(hidden))
    return (8 if case.algorithm == "dpo" else 6) * weights


CASES = (
    Case(algorithm="sft", size="3M", bf16=False, faster=2, memory=0.8),
    Case(algorithm="sft", size="15M", bf16=False, faster=1.6, memory=0.8),
    Case(algorithm="sft", size="15M", bf16=True, faster=2, memory=0.8),
    Case(algorithm="dpo", size="3M", bf16=False, faster=2, memory=0.8),
    Case(algorithm="dpo", size="15M", bf16=False, faster=1.7, memory=0.8),
    Case(algorithm="reward", size="3M", bf16=False, faster=1.4, memory=0.9),
    Case(algorithm="reward", size="15M", bf16=False, faster=1.4, memory=0.9),
)
CURVES = {
    algorithm: Row(f"{algorithm}: largest difference of the losses from TRL's, {CURVE_STEPS} steps", "nats")
    for algorithm in ("sft", "dpo", "reward")
}
ROWS = (
    *(row for case in CASES for row in case.rows),
    *(replace(row, at_most=1e-3, worst=True) for row in CURVES.values()),
)


def run(*, runs: int, steps: int, threads: int) -> list[Run]:
    """Make the models, then train with each."""
    with ExitStack() as open_:
        models = {
            (size, is_policy): open_.enter_context(random_judge(*shape, is_policy=is_policy))
            for size, shape in SIZES.items()
            for is_policy in (True, False)
        }
        return repeat(runs, lambda: once(models, steps, threads))


def once(models: dict[tuple[str, bool], Path], steps: int, threads: int) -> Run:
    """Every case and every curve."""
    busy = busy_share()
    signs = [f"{busy:.0%} of the cores had other work"] if busy > MAX_OTHER_WORK else []
    values: dict[str, float] = {}
    with TemporaryDirectory() as name:
        for case in CASES:
            work = prepare(Path(name) / case.name.replace(" ", "-"), models, case, steps, threads)
            dtype = "bfloat16" if case.bf16 else "float32"
            with plain_forward(models[case.size, False], dtype, threads) as plain:
                flops = plain.ask([])["flops"]
            orders = ("random", "group_by_length") if case.algorithm == "sft" else ("random",)
            bonsai = train(work, "bonsai", ours)
            peers = [train(work, order, partial(trl, order=order)) for order in orders]
            found = case.values(bonsai, peers, flops)
            values |= {row.figure: value for row, value in zip(case.rows, found, strict=True)}
        for algorithm, row in CURVES.items():
            case = Case(algorithm=algorithm, size="3M", bf16=False, faster=1, memory=1)
            work = prepare(Path(name) / f"{algorithm}-curve", models, case, CURVE_STEPS, threads, BATCH)
            values[row.figure] = compare_curves(work)
    return Run(values, signs)


def prepare(
    out: Path,
    models: dict[tuple[str, bool], Path],
    case: Case,
    steps: int,
    threads: int,
    rows: int | None = None,
) -> Work:
    """Writes the rows: enough for one epoch, if not said otherwise."""
    out.mkdir()
    write_rows(out / "rows.jsonl", case.algorithm, rows or BATCH * steps)
    return Work(
        algorithm=case.algorithm,
        model=models[case.size, case.algorithm != "reward"],
        data=out / "rows.jsonl",
        out=out,
        bf16=case.bf16,
        threads=threads,
        steps=steps,
    )


def train(work: Work, name: str, command: Callable[[Work], list[str]]) -> Cost:
    """One process from start to end."""
    at = work.at(name)
    return watch(command(at), at)


def compare_curves(work: Work) -> float:
    """The largest distance of two losses of one step."""
    bonsai = train(work, "bonsai", ours)
    peer = train(work, "sequential", partial(trl, order="sequential"))
    return max(abs(one - other) for one, other in zip(bonsai.losses, peer.losses, strict=True))


BENCH = Bench(
    name="trainers",
    help="SFT, DPO and reward models against TRL",
    flags=(
        Flag("runs", RUNS, "the median counts"),
        Flag("steps", 16, "of each training run"),
        Flag("threads", len(os.sched_getaffinity(0)), "of each training run"),
    ),
    rows=ROWS,
    run=run,
    takes_s=2400,
)
