"""Runs of training for Prometheus: the newest figures of every run under a folder.

    python -m trainers.exporter runs --port 9105

A run needs to know nothing of it: what it writes into metrics.jsonl is read at each scrape, so it works for
runs under way and finished ones, of this machine or of a shared disk. Reading costs the last part of each
file, however long a run is. It shows the newest runs only, and looks a few folders deep.
"""

import argparse
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trainers.checkpoint import MANIFEST
from trainers.folder import METRICS

PORT = 9105
MAX_RUNS = 50
MAX_DEPTH = 4
"""Folders below the one that is named; checkpoints lie in runs, and runs beside each other."""
TAIL_BYTES = 64 * 1024
"""Some hundred lines: enough for the newest of what is measured seldom, as evaluations are."""

Labels = tuple[str, ...]
FAMILIES: dict[str, tuple[Labels, str]] = {
    "bonsai_training_value": (("run", "name"), "newest of each figure in a run's metrics.jsonl"),
    "bonsai_training_updated_timestamp_seconds": (("run",), "when a run last wrote figures, Unix time"),
    "bonsai_training_finished": (("run",), "1 where the trained model is there, 0 before"),
    "bonsai_training_runs": ((), "runs that were found, those that are not shown included"),
}
"""Name -> labels and meaning."""


@dataclass(frozen=True)
class RunState:
    """What a run's folder says."""

    name: str
    updated: float
    finished: bool
    values: dict[str, float]


class RunsCollector(Collector):
    """Reads the runs below a folder, whenever it is asked."""

    def __init__(self, folder: Path, max_runs: int = MAX_RUNS) -> None:
        self._folder, self._max_runs = folder, max_runs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families, those without values too."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels) for name, (labels, text) in FAMILIES.items()
        }
        value, updated, finished, runs = families.values()
        found = sorted(find_runs(self._folder), reverse=True)
        runs.add_metric([], len(found))
        for _, path in found[: self._max_runs]:
            state = read_run(self._folder, path)
            if state is None:
                continue
            updated.add_metric([state.name], state.updated)
            finished.add_metric([state.name], state.finished)
            for name, number in state.values.items():
                value.add_metric([state.name, name], number)
        yield from families.values()


def find_runs(folder: Path) -> Iterator[tuple[float, Path]]:
    """(when it was last written, the run's folder) of all runs; links are not followed."""
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if METRICS in files:
            try:
                yield (path / METRICS).stat().st_mtime, path
            except OSError:  # it has just been replaced
                continue
        if len(path.relative_to(folder).parts) >= MAX_DEPTH:
            folders.clear()


def read_run(root: Path, folder: Path) -> RunState | None:
    """What is in a run's folder; None where it cannot be read, as when it is being replaced."""
    try:
        updated = (folder / METRICS).stat().st_mtime
        values = newest(_tail(folder / METRICS))
        finished = (folder / MANIFEST).exists()
    except OSError:
        return None
    return RunState(folder.relative_to(root).as_posix(), updated, finished, values)


def newest(text: str) -> dict[str, float]:
    """The last number of each name in lines of JSON; lines that are not whole say nothing."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            values |= {name: float(number) for name, number in row.items() if _is_number(number)}
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def build_parser() -> argparse.ArgumentParser:
    """Every flag."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.exporter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the runs' folders are")
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="(default: %(default)s)")
    parser.add_argument(
        "--max-runs", type=int, default=MAX_RUNS, metavar="N", help="the newest (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; 2 where there is no such folder, or the port is in use."""
    options = build_parser().parse_args(argv)
    if not options.folder.is_dir():
        print(f"error: {options.folder}: no such folder", file=sys.stderr)
        return 2
    registry = CollectorRegistry()
    registry.register(RunsCollector(options.folder, options.max_runs))
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        server, thread = start_http_server(options.port, options.host, registry)
    except OSError as error:
        print(f"error: {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"http://{options.host}:{server.server_port}/metrics", flush=True)
    over.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
