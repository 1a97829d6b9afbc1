"""The command line of the scenarios: their flags, one run, its reports, its exit code."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from loadtests import measures, quality, report, thresholds
from loadtests.arguments import count, positive, several
from loadtests.client import Client
from loadtests.figures import Figure, save
from loadtests.scenarios import MAX_IN_FLIGHT, Flag, Load, Scenario, asker
from loadtests.stages import Stage, drive_all, name_of
from loadtests.thresholds import Threshold

KEY, SECOND_KEY = "BONSAI_API_KEY", "BONSAI_COMPARE_API_KEY"
MISSED = 1
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", scenario: Scenario) -> None:
    """The sub-command of a scenario."""
    command = commands.add_parser(scenario.name, help=scenario.help, description=f"Load: {scenario.help}.")
    command.add_argument("--url", required=True, help="the server, e.g. http://127.0.0.1:8000")
    command.add_argument(
        "--rate",
        type=several(positive),
        default=(5.0,),
        metavar="R[,R...]",
        help="requests a second; several are driven one after the other (default: 5)",
    )
    command.add_argument(
        "--seconds", "--duration", type=positive, default=10.0, help="at each rate (default: %(default)g)"
    )
    add_flags(command, scenario)
    add_requests(command)
    _add_comparison(command)


def add_flags(command: argparse.ArgumentParser, scenario: Scenario) -> None:
    """The settings of a scenario."""
    for flag in scenario.flags:
        _add_flag(command, flag)


def _add_flag(command: argparse.ArgumentParser, flag: Flag) -> None:
    default, metavar = flag.default, "N"
    kind: Callable[[str], float | tuple[float, ...]] = count if isinstance(default, int) else positive
    shown = f"{default:g}" if isinstance(default, int | float) else ",".join(map(str, default))
    if isinstance(default, tuple):
        kind, metavar = several(count), "N[,N...]"
    name = f"--{flag.name.replace('_', '-')}"
    command.add_argument(
        name, type=kind, default=default, metavar=metavar, help=f"{flag.help} (default: {shown})"
    )


def add_requests(command: argparse.ArgumentParser) -> None:
    """What every load can be told of its requests, and what is held of its answers."""
    command.add_argument("--model", help="(default: the first that the server lists)")
    command.add_argument("--api-key", default=os.environ.get(KEY), metavar="KEY", help=f"(default: ${KEY})")
    command.add_argument("--prompts", metavar="FILE", help="a prompt a line: text, or JSON with messages")
    command.add_argument("--poisson", action="store_true", help="requests come at random, not evenly")
    command.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    command.add_argument(
        "--max-in-flight",
        type=count,
        default=MAX_IN_FLIGHT,
        metavar="N",
        help="requests beyond are not sent, and count as failed (default: %(default)s)",
    )
    command.add_argument(
        "--timeout", type=positive, default=120.0, metavar="S", help="of a request (default: %(default)g)"
    )
    command.add_argument("--judge", metavar="URL", help="a reward server that scores all answers afterwards")
    command.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="limits; exit code 1 where one is missed"
    )


def _add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument("--compare", metavar="URL", help="drive this server by the same schedule too")
    command.add_argument("--compare-model", metavar="NAME", help="its model (default: the first)")
    command.add_argument(
        "--compare-api-key",
        default=os.environ.get(SECOND_KEY),
        metavar="KEY",
        help=f"its key (default: ${SECOND_KEY})",
    )


def run(load: Load, thresholds_file: Path | None, out: Path) -> int:
    """Drive, report, judge; the exit code. LoadTestError where there is nothing to measure."""
    limits = thresholds.read(thresholds_file, measures.KEYS) if thresholds_file else []
    found, stopped_by = uvloop.run(drive(load))
    written = report.write(load, found, limits, out / load.scenario, interrupted=stopped_by is not None)
    figures = all_figures(load, found, limits)
    print(f"{load.scenario}: {report.lag_line(found).text}")
    for table in report.all_tables(found, limits):
        table.show()
    print(f"written to {save(out, load.scenario, figures)}, {', '.join(map(str, written))}", flush=True)
    if stopped_by is not None:
        return STOPPED[stopped_by]
    return MISSED if any(figure.met is False for figure in figures) else 0


def all_figures(load: Load, found: Sequence[Stage], limits: Sequence[Threshold]) -> list[Figure]:
    """Of every stage."""
    names = [name_of(stage, found) if len(found) > 1 else "" for stage in found]
    return [
        figure
        for stage, name in zip(found, names, strict=True)
        for figure in measures.figures(stage, load.command(), limits, name)
    ]


async def drive(load: Load) -> tuple[list[Stage], signal.Signals | None]:
    """The stages, and the signal that ended them early: what was done by then counts."""
    stop, signals, loop = asyncio.Event(), list[signal.Signals](), asyncio.get_running_loop()

    def leave(number: signal.Signals) -> None:
        signals.append(number)
        stop.set()

    for number in STOPPED:
        loop.add_signal_handler(number, leave, number)
    if load.judge:
        async with Client(load.judge) as judge:
            await judge.reach()  # rather known before the load than after it
    found = await drive_all(load, stop)
    if load.judge:
        lost = await quality.judge(load.judge, found, asker(load), load.timeout, stop)
        if lost:
            print(f"loadtests: the judge did not judge {lost} answers", file=sys.stderr)
    return found, signals[0] if signals else None


def load_of(args: argparse.Namespace) -> Load:
    """What a command line asks for."""
    given = {name: value for name, value in vars(args).items() if name not in {"out", "thresholds"}}
    return Load(**given)
