"""A stack at a share of its capacity for long, without errors and in flat memory.

    python -m loadtests sustained --stack runs/demo/ready.json --duration 600

First the capacity is measured by a closed loop, then a share of it is asked by the clock (open loop), best_of
mixed, while the memory of every server is looked at. Exit code 1 where any request fails, where the memory of
a server grows beyond the bound after the warm-up, or where a threshold of the user's is missed.
"""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from loadtests import capacity, command, measures, memory, report, thresholds
from loadtests.arguments import positive
from loadtests.capacity import Step
from loadtests.errors import LoadTestError
from loadtests.figures import percentile, save
from loadtests.memory import MIB, WARM_UP, Growth, Look
from loadtests.page import Line, Picture
from loadtests.pictures import rewards
from loadtests.plots import Series
from loadtests.quality import answered
from loadtests.scenarios import BY_NAME, Load
from loadtests.stages import Stage
from loadtests.tables import Table, number
from loadtests.thresholds import Threshold

NAME = "sustained"
MIX = BY_NAME["best-of-n"]
HELP = "hold a stack at a share of its capacity: no errors, flat memory"
NO_ERRORS = Threshold("error_share", "at_most", 0.0)
LOOKS = 200
"""At the memory, over the run; seldomer than MAX_PERIOD_S they are not."""
MAX_PERIOD_S = 3.0
SHARE_OF_DURATION = 60
"""A step of the capacity's measurement is so much shorter than the run, unless it is said."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is driven, and what has to be kept."""

    load: Load
    """Its rate is set once the capacity is known."""
    pids: Mapping[str, int]
    share: float
    step_s: float
    max_growth_mib: float

    def command(self) -> str:
        """The command line that repeats this run on a stack of the same addresses."""
        pids = ",".join(f"{server}={pid}" for server, pid in self.pids.items())
        words = ["--url", self.load.url, "--pids", pids, "--share", f"{self.share:g}"]
        words += ["--seconds", f"{self.load.seconds:g}", "--capacity-seconds", f"{self.step_s:g}"]
        words += ["--max-growth-mib", f"{self.max_growth_mib:g}", *self.load.flags()]
        return shlex.join(["python", "-m", "loadtests", NAME, *words])


@dataclass(frozen=True)
class Found:
    """What was measured."""

    load: Load
    """As it was driven."""
    steps: Sequence[Step]
    stages: Sequence[Stage]
    looks: Sequence[Look]
    interrupted_by: int | None

    @property
    def span(self) -> tuple[float, float]:
        """From the first request until the last answer, by `now`."""
        samples = [sample for stage in self.stages for sample in stage.samples]
        if not samples:
            return 0.0, 0.0
        return samples[0].scheduled_at, max(sample.answer.ended_at for sample in samples)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The sub-command."""
    parser = commands.add_parser(
        NAME, help=HELP, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stack", type=Path, metavar="FILE", help="ready file of `gateway up`, instead of --url and --pids"
    )
    parser.add_argument("--url", help="the gateway, e.g. http://127.0.0.1:8000")
    parser.add_argument("--pids", type=_pids, metavar="NAME=PID[,...]", help="of the servers to be watched")
    parser.add_argument("--share", type=positive, default=0.7, help="of the capacity (default: %(default)s)")
    parser.add_argument(
        "--seconds", "--duration", type=positive, default=600.0, help="(default: %(default)g)"
    )
    parser.add_argument(
        "--capacity-seconds",
        type=positive,
        metavar="S",
        help=f"of each step while the capacity is measured (default: 1/{SHARE_OF_DURATION} of --seconds)",
    )
    parser.add_argument(
        "--max-growth-mib",
        type=positive,
        default=32.0,
        metavar="MIB",
        help=f"that each server may grow once {WARM_UP:g} of the time is over (default: %(default)g)",
    )
    command.add_flags(parser, MIX)
    command.add_requests(parser)


def plan_of(args: argparse.Namespace) -> Plan:
    """What a command line asks for. LoadTestError where it does not say which stack."""
    given = {name: getattr(args, name) for name in Load.__dataclass_fields__ if hasattr(args, name)}
    if args.stack is not None:
        given["url"], pids = _read_stack(args.stack)
    else:
        pids = args.pids
    if not given["url"] or not pids:
        raise LoadTestError("which stack? --stack FILE, or --url and --pids")
    return Plan(
        load=Load(**given | {"scenario": MIX.name, "rate": ()}),
        pids=pids,
        share=args.share,
        step_s=args.capacity_seconds or args.seconds / SHARE_OF_DURATION,
        max_growth_mib=args.max_growth_mib,
    )


def _read_stack(path: Path) -> tuple[str, dict[str, int]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["url"]), {str(name): int(pid) for name, pid in content["pids"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise LoadTestError(f"{path}: no ready file of `python -m gateway up --ready-file`") from None


def _pids(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and pid.isdigit() for name, _, pid in pairs):
        raise argparse.ArgumentTypeError("must be NAME=PID[,NAME=PID...]")
    return {name: int(pid) for name, _, pid in pairs}


def run(plan: Plan, thresholds_file: Path | None, out: Path) -> int:
    """Measure, report, judge; the exit code. LoadTestError where there is nothing to measure."""
    limits = [NO_ERRORS]
    if thresholds_file:
        own = thresholds.read(thresholds_file, measures.KEYS)
        limits = [limit for limit in limits if limit.key not in {o.key for o in own}] + own
    memory.check(plan.pids)
    found = uvloop.run(_measure(plan))
    grown = memory.growths(found.looks, *found.span, plan.max_growth_mib * MIB)
    interrupted = found.interrupted_by is not None
    frame = frame_of(plan, found, grown)
    written = report.write(found.load, found.stages, limits, out / NAME, interrupted=interrupted, frame=frame)
    for table in [*frame.tables, *report.all_tables(found.stages, limits)]:
        table.show()
    figures = [figure for s in found.stages for figure in measures.figures(s, plan.command(), limits)]
    print(f"written to {save(out, NAME, figures)}, {', '.join(map(str, written))}", flush=True)
    if found.interrupted_by is not None:
        return found.interrupted_by
    kept = all(growth.kept for growth in grown) and not any(figure.met is False for figure in figures)
    return 0 if kept else command.MISSED


async def _measure(plan: Plan) -> Found:
    period_s = min(MAX_PERIOD_S, plan.load.seconds / LOOKS)
    async with memory.watched(plan.pids, period_s) as looks:
        steps = await capacity.measure(plan.load, plan.step_s)
        rate = plan.share * capacity.best(steps)
        print(
            f"capacity {capacity.best(steps):.2f}/s; now {rate:.2f}/s for {plan.load.seconds:g} s", flush=True
        )
        load = replace(plan.load, rate=(rate,))
        stages, number_of_signal = await command.drive(load)
        stopped = None if number_of_signal is None else command.STOPPED[number_of_signal]
        return Found(load, steps, stages, looks, stopped)


def frame_of(plan: Plan, found: Found, grown: Sequence[Growth]) -> report.Frame:
    """What the report says besides the figures of the load."""
    best, (begin, end) = capacity.best(found.steps), found.span
    bound = f"{plan.max_growth_mib:g} MiB after the first {WARM_UP:.0%} of the time"
    not_flat = [growth.server for growth in grown if not growth.kept]
    verdict = f"Memory is not flat: {', '.join(not_flat)} grew by more than {bound}, or ended."
    flat = Line(f"Memory is flat: no server grew by more than {bound}.")
    looks = [look for look in found.looks if look.at <= end]
    pictures = {
        "latency": latency(found.stages),
        "memory": memory.picture(looks, begin),
        "quality": rewards(found.stages),
    }
    return report.Frame(
        title=f"Sustained load: {plan.load.seconds:g} s at {plan.share:.0%} of capacity",
        command=plan.command(),
        lines=[
            Line(f"Capacity: {number(best)} requests a second; driven at {number(found.load.rate[0])}."),
            Line(verdict, bad=True) if not_flat else flat,
        ],
        tables=[memory.table(grown), by_minute(found.stages, looks), capacity.table(found.steps)],
        pictures={name: picture for name, picture in pictures.items() if picture.series},
        facts={"capacity_per_s": best, "memory": [_fact(growth) for growth in grown]},
    )


def _fact(growth: Growth) -> dict[str, Any]:
    mib = {name: round(getattr(growth, name) / MIB, 2) for name in ("before", "after", "by", "bound")}
    return {"server": growth.server, "flat": growth.kept} | {
        f"{name}_mib": value if value == value else None for name, value in mib.items()
    }


def latency(stages: Sequence[Stage]) -> Picture:
    """Every answer's, by when it was due and what it asked for."""
    series = [
        Series(f"best_of {n}", _latencies(stage, n), dots=True)
        for stage in stages
        for n in sorted({sample.best_of for sample in stage.samples})
    ]
    return Picture("Latency by best_of, over time", "seconds into the run", "ms", series, log=True)


def _latencies(stage: Stage, best_of: int) -> list[tuple[float, float]]:
    begin = stage.samples[0].scheduled_at
    return [
        (sample.scheduled_at - begin, sample.latency_s * 1000)
        for _, sample in answered(stage.samples)
        if sample.best_of == best_of
    ]


def by_minute(stages: Sequence[Stage], looks: Sequence[Look]) -> Table:
    """The run minute by minute."""
    head = ("minute", "requests", "failed", "latency p50", "latency p99", "memory")
    samples = [sample for stage in stages for sample in stage.samples]
    begin = samples[0].scheduled_at if samples else 0.0
    rows = []
    for minute in sorted({int((sample.scheduled_at - begin) // 60) for sample in samples}):
        due = [sample for sample in samples if (sample.scheduled_at - begin) // 60 == minute]
        good = [sample.latency_s * 1000 for _, sample in answered(due)]
        seen = [sum(look.pss.values()) / MIB for look in looks if (look.at - begin) // 60 == minute]
        rows.append(
            (
                str(minute + 1),
                str(len(due)),
                str(len(due) - len(good)),
                number(percentile(good, 0.5), "ms"),
                number(percentile(good, 0.99), "ms"),
                number(percentile(seen, 0.5), "MiB"),
            )
        )
    return Table("By minute", head, rows)
