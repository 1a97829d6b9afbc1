"""`python -m loadtests SCENARIO`: load on a running stack, and the benchmarks of the gateway."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from loadtests import scenarios
from loadtests.bench import Bench
from loadtests.benches import BENCHES
from loadtests.errors import LoadTestError
from loadtests.everything import run_everything
from loadtests.figures import Figure, save, show
from loadtests.scenarios import Load

EPILOG = """\
examples:
  python -m loadtests chat --url http://127.0.0.1:8000 --rate 20 --seconds 10
  python -m loadtests best-of-n --url http://127.0.0.1:8000 --rate 4 --seconds 10 --best-of 8
  python -m loadtests score --url http://127.0.0.1:8001 --rate 20 --seconds 10
  python -m loadtests gateway-overhead
  python -m loadtests all

The first four load a running server. The others start the gateway themselves, on a core of its own, before
fake servers (`python -m loadtests.fakes --help`). Requests start by the clock (open loop), and latencies
count from the scheduled instant. Figures go to DIR/SCENARIO.json. Load is for servers of your own.
"""


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per scenario."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Measure a running stack under load, or what the gateway costs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    _add_scenario(commands, "chat", "plain chat completions", tokens=True)
    _add_scenario(commands, "stream", "streamed chat completions", tokens=True)
    best_of_n = _add_scenario(commands, "best-of-n", "chat completions chosen out of N", tokens=True)
    best_of_n.add_argument("--best-of", type=_count, default=4, metavar="N", help="(default: %(default)s)")
    score = _add_scenario(commands, "score", "the reward server's /score", tokens=False)
    score.add_argument("--responses", type=_count, default=8, metavar="N", help="each (default: %(default)s)")
    for bench in BENCHES:
        _add_bench(commands, bench)
    everything = commands.add_parser(
        "all", help="every benchmark, and every scenario on the demo's models where runs/demo has them"
    )
    everything.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), metavar="DIR", help="(default: %(default)s)"
    )
    for command in commands.choices.values():
        command.add_argument(
            "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="(default: %(default)s)"
        )
    return parser


def _add_scenario(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, *, tokens: bool
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"Open-loop load: {text}.")
    command.add_argument("--url", required=True, help="the server, e.g. http://127.0.0.1:8000")
    command.add_argument(
        "--rate", type=_positive, default=5.0, help="requests a second (default: %(default)s)"
    )
    command.add_argument("--seconds", type=_positive, default=10.0, help="of arrivals (default: %(default)s)")
    command.add_argument("--model", help="(default: the first that the server lists)")
    if tokens:
        command.add_argument("--max-tokens", type=_count, default=32, help="(default: %(default)s)")
    return command


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", bench: Bench) -> None:
    text = f"{bench.help} (takes {bench.takes_s:.0f} s)"
    command = commands.add_parser(bench.name, help=text, description=f"Benchmark: {text}.")
    for flag in bench.flags:
        kind = _count if isinstance(flag.default, int) else _positive
        command.add_argument(
            f"--{flag.name.replace('_', '-')}",
            type=kind,
            default=flag.default,
            metavar="N",
            help=f"{flag.help} (default: %(default)s)",
        )


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number of 1 or more")
    return number


def measure_one(args: argparse.Namespace) -> list[Figure]:
    """The figures of one sub-command."""
    given = {name: value for name, value in vars(args).items() if name != "out"}
    for bench in BENCHES:
        if bench.name == args.scenario:
            return bench.measure({flag.name: given[flag.name] for flag in bench.flags})
    return uvloop.run(scenarios.measure(Load(**given)))


def report(name: str, figures: Sequence[Figure], out: Path) -> None:
    """Table and file."""
    show(name, figures)
    print(f"written to {save(out, name, figures)}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, save; the exit code."""
    args = build_parser().parse_args(argv)
    try:
        if args.scenario == "all":
            run_everything(args.demo, lambda name, figures: report(name, figures, args.out))
        else:
            report(args.scenario, measure_one(args), args.out)
    except LoadTestError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "120")
    sys.exit(main())
