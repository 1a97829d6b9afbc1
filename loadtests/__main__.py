"""`python -m loadtests SCENARIO`: load on a running stack, and the benchmarks of the gateway."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtests import command, sustained
from loadtests.arguments import count, positive, some_of
from loadtests.bench import Bench, Setting
from loadtests.benches import APART, BENCHES
from loadtests.errors import LoadTestError
from loadtests.everything import run_everything
from loadtests.figures import Figure, save, show, with_earlier
from loadtests.scenarios import BY_NAME, SCENARIOS

EPILOG = """\
examples:
  python -m loadtests chat --url http://127.0.0.1:8000 --rate 5,10,20 --seconds 30
  python -m loadtests best-of-n --url http://127.0.0.1:8000 --rate 4 --best-of 1,4,8 --thresholds limits.toml
  python -m loadtests stream --url http://127.0.0.1:8000 --compare http://127.0.0.1:8100
  python -m loadtests score --url http://127.0.0.1:8001 --rate 20
  python -m loadtests sustained --stack runs/demo/ready.json --duration 600
  python -m loadtests gateway-overhead
  python -m loadtests all

The first five load a running server and report to DIR/SCENARIO/report.html, .md and .json. The others start
the gateway themselves, on a core of its own, before fake servers (`python -m loadtests.fakes --help`).
Requests start by the clock (open loop), and latencies count from the scheduled instant. Figures go to
DIR/SCENARIO.json. Load is for servers of your own.
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
    for scenario in SCENARIOS:
        command.add(commands, scenario)
    sustained.add(commands)
    for bench in (*BENCHES, *APART):
        _add_bench(commands, bench)
    everything = commands.add_parser(
        "all", help="every benchmark, and every scenario on the demo's models where runs/demo has them"
    )
    everything.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), metavar="DIR", help="(default: %(default)s)"
    )
    for sub_command in commands.choices.values():
        sub_command.add_argument(
            "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="(default: %(default)s)"
        )
    return parser


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", bench: Bench) -> None:
    text = f"{bench.help} (takes {bench.takes_s:.0f} s)"
    sub_command = commands.add_parser(bench.name, help=text, description=f"Benchmark: {text}.")
    for flag in bench.flags:
        default = flag.default
        kind: Callable[[str], Setting] = count if isinstance(default, int) else positive
        if isinstance(default, tuple):
            kind = some_of(default)
        sub_command.add_argument(
            f"--{flag.name.replace('_', '-')}",
            type=kind,
            default=default,
            metavar="X[,X...]" if isinstance(default, tuple) else "N",
            help=f"{flag.help} (default: {','.join(default) if isinstance(default, tuple) else default})",
        )


def measure_bench(args: argparse.Namespace) -> list[Figure]:
    """The figures of a benchmark; with those of its other parts, where it has parts, from earlier runs."""
    (bench,) = (bench for bench in (*BENCHES, *APART) if bench.name == args.scenario)
    figures = bench.measure({flag.name: getattr(args, flag.name) for flag in bench.flags})
    return with_earlier(args.out, bench.name, figures) if bench.has_parts else figures


def report(name: str, figures: Sequence[Figure], out: Path) -> None:
    """Table and file."""
    show(name, figures)
    print(f"written to {save(out, name, figures)}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, save; the exit code."""
    args = build_parser().parse_args(argv)
    try:
        if args.scenario in BY_NAME:
            return command.run(command.load_of(args), args.thresholds, args.out)
        if args.scenario == sustained.NAME:
            return sustained.run(sustained.plan_of(args), args.thresholds, args.out)
        if args.scenario == "all":
            run_everything(args.demo, lambda name, figures: report(name, figures, args.out))
        else:
            report(args.scenario, measure_bench(args), args.out)
    except LoadTestError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "120")
    sys.exit(main())
