"""`make bench`: every benchmark, then every scenario on the demo's models where there are some; then all
that has a target in one table."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from loadtests.bench import Bench
from loadtests.benches import BENCHES
from loadtests.errors import LoadTestError
from loadtests.figures import Figure, show
from loadtests.measures import figures
from loadtests.processes import free_port
from loadtests.scenarios import BY_NAME, Load
from loadtests.stages import drive_all

START_LIMIT_S = 300.0
# Well below what two cores without a GPU sustain, so that latencies are the stack's and not a queue's.
RATES = {"chat": 4.0, "stream": 4.0, "best-of-n": 2.0, "score": 10.0}

Report = Callable[[str, Sequence[Figure]], None]


def run_everything(demo: Path, report: Report, benches: Sequence[Bench] = BENCHES) -> None:
    """Report each benchmark as it ends. LoadTestError when the demo's models are there but do not start."""
    begin, goals = time.monotonic(), []
    print(f"about {sum(bench.takes_s for bench in benches) / 60:.0f} minutes", flush=True)
    for bench in benches:
        measured = bench.measure(bench.defaults())
        report(bench.name, measured)
        goals += [figure for figure in measured if figure.target is not None]
    measure_demo(demo, report)
    show("what was promised", goals)
    print(f"all of it took {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)


def measure_demo(demo: Path, report: Report) -> None:
    """Every scenario on the demo's models, where there are some."""
    policy, reward = demo / "dpo", demo / "reward"
    if not (policy.is_dir() and reward.is_dir()):
        print(f"no models in {demo}: `make demo` makes them, and then every scenario runs here")
        return
    with stack(policy, reward) as urls:
        for scenario, rate in RATES.items():
            url = urls["reward" if scenario == "score" else "gateway"]
            settings: dict[str, Any] = {flag.name: flag.default for flag in BY_NAME[scenario].flags}
            load = Load(scenario=scenario, url=url, rate=(rate,), seconds=10.0, **settings)
            (stage,) = uvloop.run(drive_all(load, asyncio.Event()))
            report(scenario, figures(stage, load.command()))


@contextmanager
def stack(policy: Path, reward: Path) -> Iterator[dict[str, str]]:
    """The whole stack on free ports; its children end with it."""
    ports = {"gateway": free_port(), "reward": free_port()}
    with TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [
            sys.executable,
            "-m",
            "gateway",
            "up",
            "--policy",
            str(policy),
            "--reward-model",
            str(reward),
        ]
        command += ["--port", str(ports["gateway"]), "--reward-port", str(ports["reward"])]
        command += ["--ready-file", str(ready), "--log-dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_ready(process, ready)
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        finally:
            process.terminate()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], ready: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise LoadTestError("the stack for the scenarios did not start", exit_code=1)
        time.sleep(0.2)
